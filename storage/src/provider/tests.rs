use super::*;

fn chunk(byte: u8) -> ChunkId {
    ChunkId([byte; 16])
}

async fn behaves(provider: &Provider) {
    let bytes = Bytes::from(
        (0..100_000u32)
            .map(|number| number as u8)
            .collect::<Vec<_>>(),
    );
    provider.put(chunk(1), bytes.clone()).await.unwrap();
    assert_eq!(provider.get(chunk(1), 0..100_000).await.unwrap(), bytes);
    assert_eq!(
        provider.get(chunk(1), 17..4000).await.unwrap(),
        bytes.slice(17..4000)
    );
    // The same name again is the same chunk, mended.
    provider.put(chunk(1), bytes.slice(..10)).await.unwrap();
    assert_eq!(
        provider.get(chunk(1), 0..10).await.unwrap(),
        bytes.slice(..10)
    );
    let short = provider.get(chunk(1), 5..20).await.unwrap_err();
    assert!(short.counts(), "{short}");
    let missing = provider.get(chunk(2), 0..1).await.unwrap_err();
    assert!(matches!(missing, ProviderError::Missing), "{missing}");
    provider.delete(chunk(2)).await.unwrap();
    provider.delete(chunk(1)).await.unwrap();
    let missing = provider.get(chunk(1), 0..1).await.unwrap_err();
    assert!(matches!(missing, ProviderError::Missing), "{missing}");
}

#[tokio::test]
async fn every_kind_keeps_chunks_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new").display().to_string();
    let local = Provider::open(&Place::Local { path }).unwrap();
    behaves(&local).await;
    let unfinished = directory.path().join("new").join("unfinished");
    assert_eq!(std::fs::read_dir(unfinished).unwrap().count(), 0);
    behaves(&Provider::open(&Place::Memory {}).unwrap()).await;
}

#[tokio::test]
async fn who_does_not_answer_is_not_waited_for() {
    // A port that nobody listens on.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let place = Place::S3 {
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        bucket: "b".to_owned(),
        region: "r".to_owned(),
        access_key: "a".to_owned(),
        secret_key: "s".to_owned(),
    };
    let provider = Provider::open(&place).unwrap();
    let error = provider
        .put(chunk(1), Bytes::from_static(b"x"))
        .await
        .unwrap_err();
    assert!(error.counts(), "{error}");
    assert!(!error.to_string().contains("secret"), "{error}");
}

#[test]
fn a_place_is_read_as_it_is_written() {
    let text = r#"{"kind":"webdav","url":"http://127.0.0.1/dav/"}"#;
    let place: Place = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&place).unwrap(), text);
    for wrong in [
        r#"{"kind":"webdav","url":"http://x/","user":"y"}"#,
        r#"{"kind":"ftp","url":"http://x/"}"#,
        r#"{"kind":"s3","bucket":"b"}"#,
    ] {
        assert!(serde_json::from_str::<Place>(wrong).is_err(), "{wrong}");
    }
    let relative = Place::Local {
        path: "here".to_owned(),
    };
    assert!(matches!(
        Provider::open(&relative),
        Err(ProviderError::Place(_))
    ));
}
