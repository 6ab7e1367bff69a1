//! The framer and every decoder of what a client may send.
//!
//! The input is a client's byte stream: startup packets, then frames. It is fed in several
//! chunkings, which must all give the same frames; every body then goes to every decoder.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "framer/copy_data.rs"]
mod copy_data;
#[path = "framer/login.rs"]
mod login;
#[path = "framer/messages.rs"]
mod messages;
#[path = "framer/stream.rs"]
mod stream;

fuzz_target!(|data: &[u8]| {
    for limit in stream::LIMITS {
        stream::check(data, limit);
    }
    let cut = stream::cut(data, &[data.len()], stream::LIMITS[0]);
    for startup in &cut.startups {
        login::check_startup(startup);
    }
    for frame in &cut.frames {
        let body = &frame[automator67_proxy::frame::HEADER_BYTES..];
        messages::check_canonical(frame[0], body);
        messages::check(body);
        login::check_scram(body);
    }
    // Without a header in front the fuzzer gets further.
    messages::check(data);
    copy_data::check(data);
    login::check_scram(data);
});

/// Ways to cut `length` bytes into pieces: all at once, one by one, and three that depend on the
/// content, so that the same input always does the same.
fn chunkings(data: &[u8]) -> Vec<Vec<usize>> {
    let mut all = vec![vec![data.len()], vec![1; data.len()]];
    for largest in [3, 17, 257] {
        // FNV-1a of the input, then a linear congruential step for each piece.
        let mut state = data
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64 ^ largest, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
        let mut pieces = Vec::new();
        let mut left = data.len();
        while left > 0 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let size = (1 + (state >> 33) % largest) as usize;
            pieces.push(size.min(left));
            left -= size.min(left);
        }
        all.push(pieces);
    }
    all
}
