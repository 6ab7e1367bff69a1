use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;

#[tokio::test]
async fn metrics_and_health_are_served_until_the_stop() {
    let metrics = Metrics::install().expect("the only recorder of this process");
    metrics::histogram!("probe_seconds").record(0.0003);
    metrics::counter!("probe_total").increment(2);
    let stop = CancellationToken::new();
    let loopback = "127.0.0.1:0".parse().expect("an address");
    let control = Control::start(loopback, metrics, stop.clone())
        .await
        .expect("a free port");
    let health = fetch(control.address(), "/healthz").await;
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    let page = fetch(control.address(), "/metrics").await;
    assert!(page.contains("text/plain; version=0.0.4"), "{page}");
    assert!(page.contains("probe_total 2"), "{page}");
    assert!(
        page.contains("probe_seconds_bucket{le=\"0.0004\"} 1"),
        "{page}"
    );
    assert!(
        page.contains("probe_seconds_bucket{le=\"0.0002\"} 0"),
        "{page}"
    );
    let lost = fetch(control.address(), "/nowhere").await;
    assert!(lost.starts_with("HTTP/1.1 404"), "{lost}");
    stop.cancel();
    control.wait().await;
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = taken.local_addr().expect("bound");
    let handle = PrometheusBuilder::new().build_recorder().handle();
    let error = Control::start(address, Metrics(handle), CancellationToken::new())
        .await
        .expect_err("the port is taken");
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

async fn fetch(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("received");
    answer
}
