use automator67_proxy::{Proxy, settings::*};
use std::time::Duration;
#[tokio::main]
async fn main() {
    let shards = (1..=3)
        .map(|i| ShardSettings {
            name: format!("shard{i}"),
            host: ShardHost::Unix("/tmp/pgs".into()),
            port: 5500 + i,
            database: "app".into(),
            admin_user: "app".into(),
            admin_password: "pw".into(),
            tls: ShardTls::Disable,
            tls_root: None,
            pool_size_max: 20,
        })
        .collect();
    let s = Settings {
        listen: "127.0.0.1:6432".parse().unwrap(),
        database: "app".into(),
        users: vec![User {
            name: "app".into(),
            password: "pw".into(),
        }],
        shards,
        tls: None,
        threads: 1,
        sessions_max: 10000,
        pool_wait_timeout: Duration::from_secs(10),
        shard_connect_timeout: Duration::from_millis(2500),
        health_interval: Duration::from_secs(1),
        login_timeout: Duration::from_secs(60),
        gather_bytes_max: 256 << 20,
        plan_cache_entries_max: 4096,
        virtual_nodes: 150,
    };
    let stop = tokio_util::sync::CancellationToken::new();
    let p = Proxy::start(s, stop.clone()).await.unwrap();
    eprintln!("listening {}", p.address());
    tokio::signal::ctrl_c().await.unwrap();
    stop.cancel();
    p.wait().await;
}
