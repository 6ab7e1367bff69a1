//! Messages of the extended protocol, put together by hand.

use bytes::{BufMut, BytesMut};

use crate::wire::Frame;

/// Messages to be sent in one write.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: BytesMut,
}

impl Batch {
    /// Nothing yet.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Any message.
    #[must_use]
    pub fn message(mut self, tag: u8, body: &[u8]) -> Batch {
        self.bytes.put_u8(tag);
        let length = u32::try_from(4 + body.len()).expect("test messages are small");
        self.bytes.put_u32(length);
        self.bytes.put_slice(body);
        self
    }

    /// Parse with unspecified parameter types.
    #[must_use]
    pub fn parse(self, name: &str, text: &str) -> Batch {
        let body = format!("{name}\0{text}\0\0\0");
        self.message(b'P', body.as_bytes())
    }

    /// Bind with text parameters and text results.
    #[must_use]
    pub fn bind(self, portal: &str, statement: &str, values: &[Option<&str>]) -> Batch {
        let mut body = BytesMut::new();
        body.put_slice(format!("{portal}\0{statement}\0").as_bytes());
        body.put_u16(0);
        body.put_u16(u16::try_from(values.len()).expect("few parameters"));
        for value in values {
            match value {
                None => body.put_i32(-1),
                Some(value) => {
                    body.put_i32(i32::try_from(value.len()).expect("short values"));
                    body.put_slice(value.as_bytes());
                }
            }
        }
        body.put_u16(0);
        self.message(b'B', &body)
    }

    /// Describe of a statement (`S`) or portal (`P`).
    #[must_use]
    pub fn describe(self, kind: char, name: &str) -> Batch {
        self.message(b'D', format!("{kind}{name}\0").as_bytes())
    }

    /// Execute with a row limit; 0 is none.
    #[must_use]
    pub fn execute(self, portal: &str, limit: u32) -> Batch {
        let mut body = BytesMut::from(portal);
        body.put_u8(0);
        body.put_u32(limit);
        self.message(b'E', &body)
    }

    /// Close of a statement (`S`) or portal (`P`).
    #[must_use]
    pub fn close(self, kind: char, name: &str) -> Batch {
        self.message(b'C', format!("{kind}{name}\0").as_bytes())
    }

    /// Parse, Bind and Execute in the unnamed slots.
    #[must_use]
    pub fn run(self, text: &str, values: &[&str]) -> Batch {
        let values: Vec<Option<&str>> = values.iter().copied().map(Some).collect();
        self.parse("", text).bind("", "", &values).execute("", 0)
    }

    /// A simple query.
    #[must_use]
    pub fn query(self, text: &str) -> Batch {
        self.message(b'Q', format!("{text}\0").as_bytes())
    }

    /// Sync.
    #[must_use]
    pub fn sync(self) -> Batch {
        self.message(b'S', b"")
    }

    /// Flush.
    #[must_use]
    pub fn flush(self) -> Batch {
        self.message(b'H', b"")
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The type bytes of frames as one word, and the SQLSTATE behind each `E`: `12E(42P01)Z`.
pub fn shape(frames: &[Frame]) -> String {
    let mut shape = String::new();
    for frame in frames {
        shape.push(char::from(frame.tag));
        if frame.tag == b'E' {
            shape += &format!("({})", frame.field(b'C').unwrap_or_default());
        }
    }
    shape
}
