//! Shards that die, hang and come back; a process that is killed or stopped; a second process; a
//! test that is killed.

mod killed;
mod orphans;
mod second;
mod shards;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::Result;
use automator67_tests::{
    batch::shape,
    wire::{Connection, Server},
};

/// A thread that runs one body until it is told to stop.
struct Worker<T> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<T>>,
}

impl<T: Send + 'static> Worker<T> {
    fn start(body: impl FnOnce(&AtomicBool) -> Result<T> + Send + 'static) -> Worker<T> {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || body(&told));
        Worker { stop, thread }
    }

    fn finish(self) -> Result<T> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("a worker's thread")
    }
}

/// Tables of every kind, and a key on every shard.
fn prepare(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    connection.execute("create table points (id bigint primary key, v integer)")?;
    connection.execute("create table words (id integer primary key, word text)")?;
    connection.execute("create table notes (id integer primary key, note text)")?;
    connection.execute("select create_distributed_table('points', 'id')")?;
    connection.execute("select create_reference_table('words')")?;
    connection.execute("insert into points select i, i from generate_series(1, 300) i")?;
    connection.execute("insert into words values (1, 'one'), (2, 'two')")?;
    connection.execute("insert into notes values (1, 'first')")?;
    connection.terminate()
}

/// The SQLSTATE and message of a query that failed; `None` when it succeeded.
fn failed(connection: &mut Connection, text: &str) -> Result<Option<(String, String)>> {
    let frames = connection.simple(text)?;
    let error = frames.iter().find(|frame| frame.tag == b'E');
    Ok(error.map(|error| {
        let field = |code| error.field(code).unwrap_or_else(|| shape(&frames));
        (field(b'C'), field(b'M'))
    }))
}
