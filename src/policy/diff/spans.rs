//! Spans of time and what is left of them. Every rule on dates holds in one span, or in several.

use std::fmt;

use jiff::Timestamp;

use crate::policy::Period;

/// [from, until); the ends of time stand for no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    from: Timestamp,
    until: Timestamp,
}

impl Span {
    pub(super) const ALWAYS: Self = Self { from: Timestamp::MIN, until: Timestamp::MAX };

    /// From a moment on; never, if there is none.
    pub(super) fn since(from: Option<Timestamp>) -> Self {
        Self { from: from.unwrap_or(Timestamp::MAX), ..Self::ALWAYS }
    }

    /// Before a moment; always, if there is none.
    pub(super) fn before(until: Option<Timestamp>) -> Self {
        Self { until: until.unwrap_or(Timestamp::MAX), ..Self::ALWAYS }
    }

    /// In a period; never, if there is none.
    pub(super) fn of(period: Option<Period>) -> Self {
        period.map_or(Self::since(None), |period| Self {
            from: period.from,
            until: period.until.unwrap_or(Timestamp::MAX),
        })
    }

    pub(super) fn is_empty(self) -> bool {
        self.until <= self.from
    }

    pub(super) fn and(self, other: Self) -> Self {
        Self { from: self.from.max(other.from), until: self.until.min(other.until) }
    }

    /// What of it lies in none of the others.
    pub(super) fn minus(self, others: &[Self]) -> Vec<Self> {
        let mut left = vec![self];
        for other in others.iter().filter(|other| !other.is_empty()) {
            left = left
                .into_iter()
                .flat_map(|span| {
                    [
                        Self { until: span.until.min(other.from), ..span },
                        Self { from: span.from.max(other.until), ..span },
                    ]
                })
                .collect();
        }
        left.retain(|span| !span.is_empty());
        left
    }
}

impl fmt::Display for Span {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let day = |moment: Timestamp| {
            let text = moment.to_string();
            text.strip_suffix("T00:00:00Z").map(str::to_owned).unwrap_or(text)
        };
        match (self.from == Timestamp::MIN, self.until == Timestamp::MAX) {
            (true, true) => out.write_str("at any time"),
            (false, true) => write!(out, "from {} on", day(self.from)),
            (true, false) => write!(out, "before {}", day(self.until)),
            (false, false) => write!(out, "from {} until before {}", day(self.from), day(self.until)),
        }
    }
}

/// Spans, for people.
pub(super) fn told(spans: &[Span]) -> String {
    let spans: Vec<String> = spans.iter().map(ToString::to_string).collect();
    spans.join(" and ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(from: i64, until: i64) -> Span {
        Span { from: Timestamp::from_second(from).unwrap(), until: Timestamp::from_second(until).unwrap() }
    }

    #[test]
    fn what_is_left_of_a_span() {
        let table = [
            ("nothing taken", span(1, 9), vec![], vec![span(1, 9)]),
            ("all taken", span(1, 9), vec![span(0, 10)], vec![]),
            ("the middle taken", span(1, 9), vec![span(3, 5)], vec![span(1, 3), span(5, 9)]),
            ("both ends taken", span(1, 9), vec![span(0, 3), span(5, 9)], vec![span(3, 5)]),
            ("taken in two parts that touch", span(1, 9), vec![span(1, 5), span(5, 9)], vec![]),
            ("an empty one takes nothing", span(1, 9), vec![span(5, 5)], vec![span(1, 9)]),
            ("another takes nothing", span(1, 3), vec![span(5, 9)], vec![span(1, 3)]),
        ];
        for (name, from, others, expected) in table {
            assert_eq!(from.minus(&others), expected, "{name}");
        }
        assert!(Span::since(None).is_empty() && !Span::before(None).is_empty());
    }
}
