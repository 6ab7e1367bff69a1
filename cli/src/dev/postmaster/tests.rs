use std::{
    env,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, Stdio},
};

use super::*;

/// A data directory with only a `postmaster.pid`, gone with the test.
struct Data(PathBuf);

impl Data {
    fn new(test: &str, file: Option<&str>) -> Data {
        let name = format!("automator67-postmaster-{test}-{}", std::process::id());
        let data = env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&data);
        fs::create_dir(&data).expect("made");
        if let Some(text) = file {
            fs::write(data.join("postmaster.pid"), text).expect("written");
        }
        Data(data)
    }

    fn file(&self) -> PathBuf {
        self.0.join("postmaster.pid")
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A shell that waits for input, under the name and with the arguments given.
fn process(name: &str, argument: &Path) -> Child {
    let child = Command::new("sh")
        .arg0(name)
        .args(["-c", "read line"])
        .arg(argument)
        .stdin(Stdio::piped())
        .spawn()
        .expect("started");
    // The kernel shows the new arguments a little after `spawn` has returned.
    let line = format!("/proc/{}/cmdline", child.id());
    while !fs::read(&line).expect("read").starts_with(name.as_bytes()) {
        std::thread::yield_now();
    }
    child
}

#[tokio::test]
async fn without_a_file_there_is_nothing_to_do() {
    let data = Data::new("none", None);
    assert_eq!(end_left_over(&data.0).await.expect("looked"), None);
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_kept() {
    let data = Data::new("damaged", None);
    // 0, 1 and negative numbers would signal process groups, init or everybody.
    for text in [
        "\n",
        "x\n",
        "12x\n",
        "0\n",
        "1\n",
        "-1\n",
        "-77\n",
        "99999999999\n",
    ] {
        fs::write(data.file(), text).expect("written");
        let error = end_left_over(&data.0).await.expect_err(text);
        assert_eq!(
            format!("{error:#}"),
            format!(
                "{} does not begin with a process id\n\
                 if no Postgres server runs on {}, remove that file",
                data.file().display(),
                data.0.display()
            )
        );
        assert_eq!(fs::read_to_string(data.file()).expect("kept"), text);
    }
}

#[tokio::test]
async fn an_empty_file_is_read_again_while_its_server_starts() {
    let data = Data::new("starting", Some(""));
    let mut child = process("postgres", &data.0);
    let text = format!("{}\n", child.id());
    let (said, ()) = tokio::join!(end_left_over(&data.0), async {
        // The first look was at the empty file: join! polls in this order.
        fs::write(data.file(), text).expect("written");
    });
    let said = said.expect("looked").expect("it says so");
    assert!(said.starts_with("stopped the Postgres server"), "{said}");
    child.wait().expect("ended");
}

#[tokio::test]
async fn an_empty_file_of_nobody_is_removed() {
    let data = Data::new("empty", Some(""));
    let said = end_left_over(&data.0).await.expect("looked");
    let said = said.expect("it says so");
    assert!(said.starts_with("removed an empty"), "{said}");
    assert!(!data.file().exists());
}

#[tokio::test]
async fn a_process_that_is_gone_is_left_to_postgres() {
    let mut child = process("postgres", Path::new("/nowhere"));
    let pid = child.id();
    child.kill().expect("killed");
    child.wait().expect("ended");
    let data = Data::new(
        "stale",
        Some(&format!("{pid}\n/nowhere\n1700000000\n5432\n")),
    );
    let said = end_left_over(&data.0).await.expect("looked");
    assert_eq!(
        said.expect("it says so"),
        format!(
            "{} is stale: its server (process {pid}) did not stop cleanly and will recover",
            data.file().display()
        )
    );
    assert!(data.file().exists());
}

#[tokio::test]
async fn a_foreign_process_with_the_number_is_spared() {
    let data = Data::new("foreign", None);
    // Not called postgres; or a server of another directory, even of one below or beside ours.
    let others = [
        ("sh", data.0.clone()),
        ("postgres", data.0.join("below")),
        (
            "postgres",
            PathBuf::from(format!("{}-beside", data.0.display())),
        ),
    ];
    for (name, argument) in others {
        let mut child = process(name, &argument);
        let pid = child.id();
        fs::write(data.file(), format!("{pid}\n")).expect("written");
        let said = end_left_over(&data.0).await.expect("looked");
        assert_eq!(
            said.expect("it says so"),
            format!(
                "removed a stale {}: process {pid} is not its server",
                data.file().display()
            )
        );
        assert!(!data.file().exists());
        assert!(
            child.try_wait().expect("looked").is_none(),
            "{name} still runs"
        );
        child.kill().expect("killed");
        child.wait().expect("ended");
    }
}

#[tokio::test]
async fn a_server_that_was_left_over_is_stopped() {
    let data = Data::new("left", None);
    let mut child = process("/usr/lib/postgresql/15/bin/postgres", &data.0);
    let pid = child.id();
    fs::write(data.file(), format!("{pid}\n{}\n", data.0.display())).expect("written");
    let said = end_left_over(&data.0).await.expect("stopped");
    assert_eq!(
        said.expect("it says so"),
        format!(
            "stopped the Postgres server (process {pid}) that an earlier run left on {}",
            data.0.display()
        )
    );
    let status = child.wait().expect("ended");
    assert_eq!(
        status.signal(),
        Some(Signal::SIGINT as i32),
        "a fast shutdown, not a kill"
    );
}
