//! What a person or a program gets when something can't be done: the act, the thing, the reason and the remedy.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The sort of a refusal; decides the HTTP status and the exit code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// The request is wrong in itself.
    Invalid,
    /// What it names doesn't exist.
    NotFound,
    /// It contradicts what is there.
    Conflict,
    /// What it would make is there already.
    Exists,
    /// The caller may not.
    Denied,
    /// The request is too large.
    TooLarge,
    /// It took too long.
    Timeout,
    /// The system refused what was needed for it.
    #[default]
    Failed,
}

/// A refused request.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, ToSchema, thiserror::Error)]
#[error("{act} {thing}: {reason}; {remedy}")]
pub struct Refusal {
    /// What was to be done.
    pub act: String,
    /// On what.
    pub thing: String,
    /// Why it wasn't.
    pub reason: String,
    /// What to do.
    pub remedy: String,
    /// Its sort; on the wire this is the HTTP status.
    #[serde(skip)]
    #[schema(ignore)]
    pub kind: Kind,
}

impl Refusal {
    /// A refusal of this sort.
    pub fn new(
        kind: Kind,
        act: impl Into<String>,
        thing: impl Into<String>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Refusal {
        Refusal {
            act: act.into(),
            thing: thing.into(),
            reason: reason.into(),
            remedy: remedy.into(),
            kind,
        }
    }

    /// The thing doesn't exist; proposes the nearest of the names that do.
    pub fn missing<'a>(
        act: &str,
        what: &str,
        name: &str,
        names: impl IntoIterator<Item = &'a String>,
    ) -> Refusal {
        let names: Vec<&String> = names.into_iter().collect();
        let remedy = match nearest(name, names.iter().map(|n| n.as_str())) {
            Some(near) => format!("did you mean `{near}`?"),
            None if names.is_empty() => {
                format!("there is no {what} yet: `vswitchctl {} add`", command(what))
            }
            None => format!("`vswitchctl {} show` lists what there is", command(what)),
        };
        let thing = format!("{what} `{name}`");
        Refusal::new(
            Kind::NotFound,
            act,
            thing,
            format!("no such {what}"),
            remedy,
        )
    }

    /// HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self.kind {
            Kind::Invalid => 400,
            Kind::Denied => 403,
            Kind::NotFound => 404,
            Kind::Timeout => 408,
            Kind::Conflict | Kind::Exists => 409,
            Kind::TooLarge => 413,
            Kind::Failed => 500,
        }
    }

    /// The sort for an HTTP status.
    #[must_use]
    pub fn kind_of(status: u16) -> Kind {
        match status {
            403 => Kind::Denied,
            404 => Kind::NotFound,
            408 => Kind::Timeout,
            409 => Kind::Conflict,
            413 => Kind::TooLarge,
            400..=499 => Kind::Invalid,
            _ => Kind::Failed,
        }
    }
}

/// The command that is about such things.
pub(crate) fn command(what: &str) -> &str {
    match what {
        "published port" => "publish",
        other => other,
    }
}

/// The name most like `name`, if one is like it: at most a third of its letters differ.
pub(crate) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names
        .into_iter()
        .map(|n| (distance(name, n), n))
        .filter(|(d, n)| *d <= (name.len().max(n.len()) / 3).max(1))
        .min_by_key(|(d, _)| *d)
        .map(|(_, n)| n)
}

/// Letters to insert, delete, replace or swap with a neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let differs = usize::from(a[i - 1] != b[j - 1]);
            let mut d = (last[j] + 1).min(row[j - 1] + 1).min(last[j - 1] + differs);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                d = d.min(before[j - 2] + 1);
            }
            row.push(d);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_finds_its_name() {
        let names = ["frontend", "backend", "lan"];
        assert_eq!(nearest("fronted", names), Some("frontend"));
        assert_eq!(nearest("lna", names), Some("lan"));
        assert_eq!(nearest("database", names), None);
    }
}
