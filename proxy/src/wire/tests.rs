use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// More than two sockets hold together.
const MUCH: usize = 4 << 20;

#[tokio::test]
async fn a_peer_that_speaks_before_it_listens_is_heard() {
    let (ours, mut theirs) = UnixStream::pair().expect("sockets");
    let mut wire = Wire::new(Stream::Unix(ours));
    wire.output.resize(MUCH, b'q');
    let peer = tokio::spawn(async move {
        theirs.write_all(&vec![b'a'; MUCH]).await.expect("heard");
        let mut questions = vec![0; MUCH];
        theirs.read_exact(&mut questions).await.expect("sent");
        theirs.shutdown().await.expect("open");
        questions
    });
    let talk = async {
        while wire.fill_and_send().await.expect("no error") > 0 {}
        assert_eq!(wire.input.len(), MUCH);
        assert!(wire.input.iter().all(|byte| *byte == b'a'));
        assert!(wire.output.is_empty());
    };
    tokio::time::timeout(Duration::from_secs(60), talk)
        .await
        .expect("neither waits for the other");
    let questions = peer.await.expect("no panic");
    assert!(questions.iter().all(|byte| *byte == b'q'));
}
