//! Cutting the stream into frames.

use automator67_proxy::frame::{self, FRAME_BYTES_MAX, FrameError, LOGIN_FRAME_BYTES_MAX};
use bytes::BytesMut;

/// Frame limits to try: after login, before it, and one that small inputs reach.
pub const LIMITS: [usize; 3] = [FRAME_BYTES_MAX, LOGIN_FRAME_BYTES_MAX, 64];

const SSL_REQUEST: [u8; 4] = 80_877_103_u32.to_be_bytes();
const GSS_REQUEST: [u8; 4] = 80_877_104_u32.to_be_bytes();

/// What a stream was cut into.
#[derive(Debug, Default, PartialEq)]
pub struct Cut {
    /// Bodies of startup packets.
    pub startups: Vec<Vec<u8>>,
    /// Whole frames.
    pub frames: Vec<Vec<u8>>,
    /// What is left: the start of a frame, or what is no frame.
    pub rest: Vec<u8>,
    /// Why the rest is no frame.
    pub error: Option<FrameError>,
}

/// Feeds `data` in pieces of these sizes.
pub fn cut(data: &[u8], sizes: &[usize], limit: usize) -> Cut {
    let mut cut = Cut::default();
    let mut started = false;
    let mut buffer = BytesMut::new();
    let mut fed = 0;
    for size in sizes {
        buffer.extend_from_slice(&data[fed..fed + size]);
        fed += size;
        if cut.error.is_none() {
            drain(&mut buffer, &mut started, limit, &mut cut);
        }
        // A length field alone must not make anybody allocate.
        assert!(
            buffer.capacity() <= 64 + 4 * data.len(),
            "the buffer grew to {} for {} bytes",
            buffer.capacity(),
            data.len()
        );
    }
    cut.rest = buffer.to_vec();
    cut
}

fn drain(buffer: &mut BytesMut, started: &mut bool, limit: usize, cut: &mut Cut) {
    while !*started {
        match frame::take_startup(buffer) {
            Ok(Some(packet)) => {
                let question = packet.get(..4);
                *started = question != Some(&SSL_REQUEST) && question != Some(&GSS_REQUEST);
                cut.startups.push(packet.to_vec());
            }
            Ok(None) => {
                assert!(
                    buffer.len() < LOGIN_FRAME_BYTES_MAX,
                    "more is kept than a startup packet may have"
                );
                return;
            }
            Err(error) => {
                cut.error = Some(error);
                return;
            }
        }
    }
    loop {
        let seen = frame::peek(buffer, limit);
        let before = buffer.len();
        match frame::take(buffer, limit) {
            Ok(Some(frame)) => {
                assert_eq!(seen, Ok(Some((frame.tag, frame.bytes.len()))));
                assert_eq!(frame.bytes[0], frame.tag);
                assert_eq!(frame.body().len() + frame::HEADER_BYTES, frame.bytes.len());
                assert_eq!(buffer.len() + frame.bytes.len(), before);
                cut.frames.push(frame.bytes.to_vec());
            }
            Ok(None) => {
                assert!(seen.is_ok_and(|seen| seen.is_none_or(|(_, size)| size > before)));
                assert_eq!(buffer.len(), before, "an incomplete frame was touched");
                assert!(buffer.len() <= limit, "more is kept than a frame may have");
                return;
            }
            Err(error) => {
                assert_eq!(seen.as_ref(), Err(&error));
                assert_eq!(buffer.len(), before, "a bad frame was touched");
                cut.error = Some(error);
                return;
            }
        }
    }
}

/// All chunkings give the same, and nothing is lost or made up.
pub fn check(data: &[u8], limit: usize) {
    let mut first: Option<Cut> = None;
    for sizes in crate::chunkings(data) {
        let cut = cut(data, &sizes, limit);
        let mut joined = Vec::with_capacity(data.len());
        for startup in &cut.startups {
            joined.extend_from_slice(&(startup.len() as u32 + 4).to_be_bytes());
            joined.extend_from_slice(startup);
        }
        joined.extend(cut.frames.iter().flatten());
        joined.extend_from_slice(&cut.rest);
        assert_eq!(joined, data, "the frames are not the stream");
        match &first {
            None => first = Some(cut),
            Some(first) => assert_eq!(*first, cut, "frames depend on the chunks"),
        }
    }
}
