use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use proptest::prelude::*;

use super::*;

fn chunk(length: usize) -> Chunk {
    Chunk {
        id: ChunkId(std::array::from_fn(|index| 0xa0 + index as u8)),
        key: ChunkKey(Zeroizing::new(std::array::from_fn(|index| index as u8))),
        length,
    }
}

fn plaintext(length: usize) -> Vec<u8> {
    (0..length)
        .map(|index| (index * 7 + index / 251) as u8)
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The format once more, from the description above and the reference implementation alone.
fn reference(chunk: &Chunk, plaintext: &[u8]) -> Vec<u8> {
    let cipher = Aes256Gcm::new_from_slice(&*chunk.key.0).unwrap();
    let mut sealed = b"A67C\x01\x01\x10\x00".to_vec();
    sealed.extend_from_slice(&chunk.id.0);
    sealed.extend_from_slice(&(plaintext.len() as u64).to_be_bytes());
    let header = sealed.clone();
    let mut segments: Vec<&[u8]> = plaintext.chunks(65536).collect();
    if segments.is_empty() {
        segments.push(&[]);
    }
    for (number, segment) in segments.iter().enumerate() {
        let number = (number as u32).to_be_bytes();
        let last = u8::from(number == (segments.len() as u32 - 1).to_be_bytes());
        let mut nonce = [0u8; 12];
        nonce[7..11].copy_from_slice(&number);
        nonce[11] = last;
        let aad = [header.as_slice(), &number].concat();
        let payload = Payload {
            msg: segment,
            aad: &aad,
        };
        sealed.extend(cipher.encrypt(&nonce.into(), payload).unwrap());
    }
    sealed
}

/// Computed by another implementation, in Python.
#[test]
fn known_answers() {
    let sealed = chunk(0).seal(&[]);
    assert_eq!(
        hex(&sealed),
        "4136374301011000a0a1a2a3a4a5a6a7a8a9aaabacadaeaf0000000000000000b8cc83ec02a3915d4424fd0c4c68f693"
    );
    let text = b"the same bytes on every machine";
    assert_eq!(
        hex(&chunk(text.len()).seal(text)),
        "4136374301011000a0a1a2a3a4a5a6a7a8a9aaabacadaeaf000000000000001f61bedadc37955d7b2e4c284d89d51a987bbf792201c02da41e6160b14f5e163e2dc7f7bfa5178a349f9de6762c0ae1"
    );
    for (length, hash) in [
        (
            SEGMENT_BYTES,
            "95c8a034c610eeb9e9f68b276d9d5a8812de8228396e1ec8840a321c24d4b762",
        ),
        (
            3 * SEGMENT_BYTES + 1,
            "0ecb40319970f2c48abc9ed42d493382dd5f5beb87df3264f20ca09c184a7492",
        ),
    ] {
        let sealed = chunk(length).seal(&plaintext(length));
        assert_eq!(blake3::hash(&sealed).to_hex().as_str(), hash, "{length}");
    }
}

#[test]
fn no_bit_can_be_changed() {
    for length in [0, 1, 300, SEGMENT_BYTES + 9] {
        let chunk = chunk(length);
        let sealed = chunk.seal(&plaintext(length)).to_vec();
        // Every bit of what is not ciphertext, and some of that.
        let step = |at: usize| at < 400 || at.is_multiple_of(97) || at + 40 > sealed.len();
        for at in (0..sealed.len()).filter(|at| step(*at)) {
            for bit in 0..8 {
                let mut changed = sealed.clone();
                changed[at] ^= 1 << bit;
                assert!(chunk.open(&changed).is_err(), "bit {bit} of byte {at}");
            }
        }
    }
}

#[test]
fn segments_stay_where_they_are() {
    let chunk = chunk(3 * SEGMENT_BYTES);
    let sealed = chunk.seal(&plaintext(chunk.length));
    let part = |number: u32| sealed.slice(chunk.sealed_range(number..number + 1));
    let header = sealed.slice(..HEADER_BYTES);
    let put = |parts: &[Bytes]| parts.concat();
    // Two in each other's place, one in another's, one left out.
    let exchanged = put(&[header.clone(), part(1), part(0), part(2)]);
    assert_eq!(chunk.open(&exchanged), Err(Corrupt::Segment(0)));
    assert_eq!(
        chunk.open_segments(1..2, &part(2)),
        Err(Corrupt::Segment(1))
    );
    let short = put(&[header.clone(), part(0), part(1)]);
    assert!(matches!(chunk.open(&short), Err(Corrupt::Length { .. })));
    // The same bytes as a shorter chunk, the end of which nobody has marked.
    let cut = Chunk {
        length: 2 * SEGMENT_BYTES,
        ..chunk.clone()
    };
    let mut header = header.to_vec();
    header[24..].copy_from_slice(&(cut.length as u64).to_be_bytes());
    let short = put(&[header.into(), part(0), part(1)]);
    assert_eq!(cut.open(&short), Err(Corrupt::Segment(0)));
    // Another chunk's, under the same key.
    let other = Chunk {
        id: ChunkId([7; 16]),
        ..chunk.clone()
    };
    assert_eq!(other.open(&sealed), Err(Corrupt::Header));
    assert_eq!(
        other.open_segments(0..1, &part(0)),
        Err(Corrupt::Segment(0))
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn what_is_sealed_is_what_the_reference_seals(
        length in prop_oneof![0usize..100, 65_500usize..65_600, 131_000usize..131_200, 0usize..300_000],
        key: [u8; 32],
        id: [u8; 16],
        cut in any::<prop::sample::Index>(),
        until in any::<prop::sample::Index>(),
    ) {
        let chunk = Chunk { id: ChunkId(id), key: ChunkKey(Zeroizing::new(key)), length };
        let plaintext = plaintext(length);
        let sealed = chunk.seal(&plaintext);
        prop_assert_eq!(&sealed, &reference(&chunk, &plaintext));
        prop_assert_eq!(sealed.len(), sealed_bytes(length));
        let opened = chunk.open(&sealed).unwrap();
        prop_assert_eq!(&opened, &plaintext);

        let (one, other) = (cut.index(length + 1), until.index(length + 1));
        let range = one.min(other)..one.max(other);
        let segments = chunk.segments_of(range.clone());
        let bytes = &sealed[chunk.sealed_range(segments.clone())];
        let opened = chunk.open_segments(segments.clone(), bytes).unwrap();
        let first = chunk.plaintext_of(segments.start).start;
        prop_assert_eq!(&opened[range.start - first..range.end - first], &plaintext[range]);
    }
}
