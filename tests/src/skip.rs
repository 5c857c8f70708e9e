//! Skipped scenarios are written down, never silent.
//!
//! `lab!` and `skip!` print the reason and, when `VSWITCH_SKIPS` names a file, add a line
//! `crate::path::test<TAB>reason` to it. `tests/run` counts the lines and fails on a test that isn't
//! on the list `tests/expected-skips`.

use std::fs::OpenOptions;
use std::io::Write;

/// Path of the function that holds the anonymous item of type `T` (used by [`crate::skip!`]).
pub fn scenario_name<T>(_inner: T) -> &'static str {
    let name = std::any::type_name::<T>();
    let name = name.strip_suffix("::vswitch_here").unwrap_or(name);
    name.trim_end_matches("::{{closure}}")
}

/// Writes one skip down.
///
/// # Panics
/// When the file named by `VSWITCH_SKIPS` can't be written: a skip must not be lost.
pub fn record(name: &str, why: &str) {
    eprintln!("SKIPPED {name}: {why}");
    if let Some(path) = std::env::var_os("VSWITCH_SKIPS") {
        let line = format!("{name}\t{}\n", why.replace(['\n', '\t'], " "));
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()))
            .unwrap_or_else(|error| {
                panic!("write the skip of {name} to {}: {error}", path.display())
            });
    }
}

/// Ends the calling test (with `return`) and writes down why: `skip!("no {thing} here")`.
#[macro_export]
macro_rules! skip {
    ($($why:tt)*) => {{
        fn vswitch_here() {}
        $crate::record_skip($crate::scenario_name(vswitch_here), &format!($($why)*));
        return;
    }};
}

/// A [`Lab`](crate::Lab), or the calling test is skipped with the reason.
#[macro_export]
macro_rules! lab {
    ($name:expr) => {
        match $crate::Lab::new($name) {
            Ok(lab) => lab,
            Err(why) => $crate::skip!("{why}"),
        }
    };
}

/// As [`lab!`], and TAP devices can be opened.
#[macro_export]
macro_rules! tap_lab {
    ($name:expr) => {{
        let lab = $crate::lab!($name);
        if let Err(why) = lab.tap_allowed() {
            $crate::skip!("{why}");
        }
        lab
    }};
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_scenario_is_named_by_its_path() {
        fn vswitch_here() {}
        assert_eq!(
            super::scenario_name(vswitch_here),
            "vswitch_tests::skip::tests::a_scenario_is_named_by_its_path"
        );
    }
}
