use super::*;
use crate::{
    chunk::ChunkKey,
    provider::faulty::{Fault, Faulty},
};

/// Providers in as many regions, numbered from 1, in virtual time.
struct Park {
    fleet: Fleet,
    stores: Vec<Faulty>,
}

impl Park {
    fn of(count: i64) -> Park {
        let stores: Vec<Faulty> = (0..count).map(|_| Faulty::default()).collect();
        let member = |(id, store): (i64, &Faulty)| {
            Arc::new(Member {
                row: ProviderRow {
                    id,
                    name: format!("p{id}"),
                    kind: "faulty".to_owned(),
                    region: format!("r{id}"),
                    place: String::new().into(),
                    state: State::Active,
                    quota_bytes: None,
                },
                provider: Provider::faulty(store.clone()),
                health: Mutex::default(),
            })
        };
        let members = (1..).zip(&stores).map(member).collect();
        Park {
            fleet: Fleet { members },
            stores,
        }
    }

    fn set(&self, id: i64, fault: Fault) {
        *self.stores[id as usize - 1].fault.lock().unwrap() = fault;
    }

    fn has(&self, id: i64, chunk: ChunkId) -> bool {
        let chunks = self.stores[id as usize - 1].chunks.lock().unwrap();
        chunks.contains_key(&chunk)
    }
}

fn chunk() -> (Chunk, Bytes, Vec<u8>) {
    let plaintext: Vec<u8> = (0..150_000u32).map(|number| (number / 3) as u8).collect();
    let chunk = Chunk {
        id: ChunkId::generate(),
        key: ChunkKey::generate(),
        length: plaintext.len(),
    };
    let sealed = chunk.seal(&plaintext);
    (chunk, sealed, plaintext)
}

const FAULTS: [Fault; 7] = [
    Fault::None,
    Fault::BlackHole,
    Fault::Fails,
    Fault::Lies,
    Fault::Corrupts,
    Fault::Forgets,
    Fault::Slow(4000),
];

#[tokio::test(start_paused = true)]
async fn one_of_three_may_do_anything() {
    for fault in FAULTS {
        for broken in 1..=3 {
            let park = Park::of(3);
            park.set(broken, fault);
            for _ in 0..20 {
                let (chunk, sealed, plaintext) = chunk();
                let started = tokio::time::Instant::now();
                let copies = park.fleet.put(chunk.id, &sealed, 2).await.unwrap();
                assert!(started.elapsed() < PATIENCE, "{fault:?}");
                assert_eq!(copies.sure.len(), 2);
                // Every copy that there is, is told.
                for id in 1..=3 {
                    let told = copies.sure.contains(&id) || copies.doubtful.contains(&id);
                    assert!(told || !park.has(id, chunk.id), "{fault:?}");
                }
                let mut bad = Vec::new();
                let read = park
                    .fleet
                    .get(&chunk, 0..chunk.segments(), &copies.sure, None, &mut bad)
                    .await
                    .unwrap();
                assert_eq!(read, plaintext, "{fault:?}");
                let told = |one: &Bad| one.provider == broken && one.chunk == chunk.id;
                assert!(bad.iter().all(told), "{fault:?} {bad:?}");
                let part = park
                    .fleet
                    .get(&chunk, 1..2, &copies.sure, Some("r2"), &mut bad)
                    .await
                    .unwrap();
                assert_eq!(part, &plaintext[65536..131_072]);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_waits_for_enough_and_not_for_ever() {
    let park = Park::of(3);
    park.set(1, Fault::Fails);
    park.set(2, Fault::BlackHole);
    let (chunk, sealed, _) = chunk();
    let started = tokio::time::Instant::now();
    let refused = park.fleet.put(chunk.id, &sealed, 2).await.unwrap_err();
    assert!(matches!(
        refused,
        FleetError::TooFew {
            there: 1,
            wanted: 2,
            ..
        }
    ));
    assert!(started.elapsed() < PATIENCE + SLOW_PUT);
}

#[tokio::test(start_paused = true)]
async fn bad_copies_are_told_and_none_is_passed_on() {
    let park = Park::of(2);
    let (chunk, sealed, plaintext) = chunk();
    park.fleet.put(chunk.id, &sealed, 2).await.unwrap();
    park.set(1, Fault::Corrupts);
    park.set(2, Fault::Forgets);
    let mut bad = Vec::new();
    let lost = park.fleet.get(&chunk, 0..3, &[1, 2], None, &mut bad).await;
    assert!(matches!(lost, Err(FleetError::Lost { .. })));
    bad.sort_by_key(|one| one.provider);
    let of = |provider| Bad {
        chunk: chunk.id,
        provider,
    };
    assert_eq!(bad, [of(1), of(2)]);
    // A provider that cannot be reached has not lost anything.
    bad.clear();
    park.set(1, Fault::Fails);
    park.set(2, Fault::None);
    let read = park.fleet.get(&chunk, 0..3, &[1, 2], None, &mut bad).await;
    assert_eq!(read.unwrap(), plaintext);
    assert!(bad.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_slow_copy_is_overtaken() {
    let park = Park::of(2);
    let (chunk, sealed, _) = chunk();
    park.fleet.put(chunk.id, &sealed, 2).await.unwrap();
    for _ in 0..50 {
        let mut bad = Vec::new();
        let read = park.fleet.get(&chunk, 0..1, &[1, 2], Some("r1"), &mut bad);
        read.await.unwrap();
    }
    park.set(1, Fault::BlackHole);
    let started = tokio::time::Instant::now();
    let mut bad = Vec::new();
    let read = park.fleet.get(&chunk, 0..1, &[1, 2], Some("r1"), &mut bad);
    read.await.unwrap();
    assert!(started.elapsed() < SLOW_GET.0, "{:?}", started.elapsed());
}
