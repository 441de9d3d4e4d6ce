//! `admin` in the settings: for nobody but this machine.

use super::Compiler;
use crate::policy::problem::Code;
use crate::sockets::Address;
use crate::yaml::Spanned;

impl Compiler<'_> {
    /// Where the admin listener listens: on loopback, or on a Unix socket.
    pub(super) fn admin(&mut self, address: &Spanned<String>) -> Option<Address> {
        match address.value.strip_prefix("unix:") {
            Some("") => {
                let help = "write `unix:` and a path, such as `unix:/run/dpa-sidecar/admin.sock`";
                self.error(Code::Invalid, address.at, "this Unix socket has no path", help);
                None
            }
            Some(path) => Some(Address::Unix(self.folder.join(path))),
            None => {
                let listens = self.address(address)?;
                if !listens.ip().is_loopback() {
                    let message = format!("`{}` can be reached from other machines", address.value);
                    let help =
                        "write `127.0.0.1:9902`, or `unix:` and a path: what the settings say is for nobody else";
                    self.error(Code::TooTrusting, address.at, message, help);
                }
                Some(Address::Tcp(listens))
            }
        }
    }
}
