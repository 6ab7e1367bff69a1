//! A password on the command line is for everybody to see who may list processes: it moves to the
//! environment, which only the account's own processes can read, before anything else happens.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::{ffi::OsStrExt, process::CommandExt},
    process::Command,
};

/// The variable that `--password` can also be given in.
const VARIABLE: &str = "AUTOMATOR67_PASSWORD";

/// Starts the program again, in this process, without its password on the command line. Returns when
/// there was none.
pub fn hide_password() -> std::io::Result<()> {
    let all: Vec<OsString> = env::args_os().skip(1).collect();
    let Some((rest, password)) = without_password(&all) else {
        return Ok(());
    };
    let own = env::current_exe()?;
    Err(Command::new(own).args(rest).env(VARIABLE, password).exec())
}

/// The arguments without `--password`, and its value.
fn without_password(all: &[OsString]) -> Option<(Vec<OsString>, OsString)> {
    if !all.iter().any(|argument| argument == "dev") {
        return None;
    }
    let at = all.iter().position(|argument| {
        argument == "--password" || argument.as_bytes().starts_with(b"--password=")
    })?;
    let (value, end) = match all[at].as_bytes().strip_prefix(b"--password=") {
        Some(value) => (OsStr::from_bytes(value).to_owned(), at + 1),
        None => (all.get(at + 1)?.clone(), at + 2),
    };
    let rest = [&all[..at], &all[end..]].concat();
    Some((rest, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_taken_out_of_the_arguments() {
        let check = |given: &str, expected: Option<(&str, &str)>| {
            let given: Vec<OsString> = given.split(' ').map(OsString::from).collect();
            let found = without_password(&given);
            let found = found.map(|(rest, password)| (rest.join(OsStr::new(" ")), password));
            let expected = expected.map(|(rest, password)| (rest.into(), password.into()));
            assert_eq!(found, expected, "{given:?}");
        };
        check(
            "dev --json --password s3cret --shards 2",
            Some(("dev --json --shards 2", "s3cret")),
        );
        check("dev --password=a=b", Some(("dev", "a=b")));
        check("dev --password-file x", None);
        check("dev --password", None);
        check("--json dev --password a", Some(("--json dev", "a")));
        check("serve --config --password", None);
    }
}
