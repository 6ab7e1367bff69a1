use bytes::BytesMut;
use proptest::prelude::*;

use super::*;

fn taken(bytes: &[u8], limit: usize) -> Result<Option<(u8, Vec<u8>, usize)>, FrameError> {
    let mut buffer = BytesMut::from(bytes);
    let frame = take(&mut buffer, limit)?;
    Ok(frame.map(|frame| (frame.tag, frame.body().to_vec(), buffer.len())))
}

#[test]
fn a_length_that_does_not_count_itself_is_refused() {
    assert_eq!(taken(b"Q\0\0\0\x03abc", 100), Err(FrameError::Length(3)));
    assert_eq!(taken(b"Q\0\0\0\0", 100), Err(FrameError::Length(0)));
    assert_eq!(
        taken(b"Q\xff\xff\xff\xff", 100),
        Err(FrameError::Length(-1))
    );
    assert_eq!(
        taken(b"Q\x80\0\0\0", 100),
        Err(FrameError::Length(i32::MIN))
    );
}

#[test]
fn a_query_without_a_body_does_not_swallow_its_neighbour() {
    assert_eq!(
        taken(b"Q\0\0\0\x04X\0\0\0\x04", 100),
        Ok(Some((b'Q', vec![], 5)))
    );
}

#[test]
fn the_limit_is_checked_before_the_body_arrives() {
    assert_eq!(
        taken(b"Q\0\0\x10\0", 100),
        Err(FrameError::TooLarge {
            length: 4096,
            limit: 100
        })
    );
    assert_eq!(
        taken(b"Q\x7f\xff\xff\xff", FRAME_BYTES_MAX),
        Err(FrameError::TooLarge {
            length: i32::MAX as usize,
            limit: FRAME_BYTES_MAX
        })
    );
}

#[test]
fn an_incomplete_frame_takes_nothing() {
    for cut in 0..9 {
        let bytes = &b"Q\0\0\0\x08abcd"[..cut];
        let mut buffer = BytesMut::from(bytes);
        assert!(take(&mut buffer, 100).expect("valid so far").is_none());
        assert_eq!(&buffer[..], bytes);
    }
}

#[test]
fn a_startup_packet_is_cut_without_its_length() {
    let mut buffer = BytesMut::from(&b"\0\0\0\x08\x04\xd2\x16\x2fQ"[..]);
    let body = take_startup(&mut buffer).expect("valid").expect("complete");
    assert_eq!(
        (&body[..], &buffer[..]),
        (&b"\x04\xd2\x16\x2f"[..], &b"Q"[..])
    );
    let mut long = BytesMut::from(&b"\0\0\x27\x11"[..]);
    assert!(take_startup(&mut long).is_err());
}

proptest! {
    #[test]
    fn frames_come_out_as_they_went_in(
        bodies in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..50)), 0..10),
        chunk in 1usize..40,
    ) {
        let mut stream = Vec::new();
        for (tag, body) in &bodies {
            stream.push(*tag);
            stream.extend_from_slice(&(body.len() as i32 + 4).to_be_bytes());
            stream.extend_from_slice(body);
        }
        let mut buffer = BytesMut::new();
        let mut seen = Vec::new();
        for part in stream.chunks(chunk) {
            buffer.extend_from_slice(part);
            while let Some(frame) = take(&mut buffer, 1000).expect("valid frames") {
                seen.push((frame.tag, frame.body().to_vec()));
            }
        }
        prop_assert_eq!(seen, bodies);
    }
}
