//! Messages for a server: each is queued together with the answer that it will have.
//!
//! Nothing is sent here, and nothing else writes to a server: what is due is always what was queued.

use bytes::{BufMut, BytesMut};

use super::{
    Expected, PREPARED_MAX, Server, Step,
    call::{ALL_AS_TEXT, Call, put_value},
    statement_name,
};
use crate::{message, two_phase, types};

/// Who sees the answer to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The client, or who reads in its place.
    Shown,
    /// Nobody: an error in it is kept as [`Server::hidden_error`].
    Hidden,
}

/// Statements of the proxy's own that a server connection keeps prepared.
#[derive(Debug, Clone, Copy)]
pub enum Own {
    /// A transaction whose snapshot stays.
    BeginSnapshot,
    /// Which commits over several shards the snapshot has seen.
    Seen,
    /// COMMIT.
    Commit,
}

impl Own {
    /// Its text.
    pub fn text(self) -> &'static str {
        match self {
            Own::BeginSnapshot => "BEGIN ISOLATION LEVEL REPEATABLE READ",
            Own::Seen => two_phase::SEEN,
            Own::Commit => "COMMIT",
        }
    }
}

impl Server {
    /// Notes that an answer is due.
    pub(super) fn owe(&mut self, step: Step, answer: Answer) {
        let relay = answer == Answer::Shown;
        self.expected.push_back(Expected::Answer { step, relay });
    }

    /// These bytes are due to the client at this point, and the server is not asked for them.
    pub fn owe_locally(&mut self, bytes: &'static [u8]) {
        self.expected.push_back(Expected::Local(bytes));
    }

    /// How many answers are due.
    pub fn answers_due(&self) -> usize {
        self.expected.len()
    }

    /// No answer is due.
    pub fn is_answered(&self) -> bool {
        self.expected.is_empty()
    }

    /// Bytes that wait to be sent.
    pub fn queued_bytes(&self) -> usize {
        self.wire.output.len()
    }

    /// A simple query.
    pub fn query(&mut self, text: &str, answer: Answer) {
        message::put_query(&mut self.wire.output, text);
        self.owe(Step::Query, answer);
        self.unnamed = None;
    }

    /// A client's FunctionCall, as it is. Like a query, it ends with ReadyForQuery.
    pub fn function_call(&mut self, bytes: &[u8]) {
        self.wire.output.extend_from_slice(bytes);
        self.owe(Step::Query, Answer::Shown);
    }

    /// Sync.
    pub fn sync(&mut self) {
        message::put_sync(&mut self.wire.output);
        self.owe(Step::Sync, Answer::Hidden);
    }

    /// Sync once more: the server has thrown one away while it read COPY data.
    pub fn sync_behind_copy(&mut self) {
        message::put_sync(&mut self.wire.output);
    }

    // ---- Parse ----

    /// Parse of the unnamed statement. `types` are those of the home shard.
    pub fn parse(&mut self, text: &str, types: &[u32], answer: Answer) {
        self.put_parse("", text, types);
        self.owe(Step::Parse, answer);
        self.unnamed = None;
    }

    /// The same of a client's statement with this number.
    pub fn parse_statement(&mut self, id: u64, text: &str, types: &[u32], answer: Answer) {
        self.parse(text, types, answer);
        self.unnamed = Some(id);
    }

    /// The unnamed statement is the client's with this number.
    pub fn has_unnamed(&self, id: u64) -> bool {
        self.unnamed == Some(id)
    }

    /// Parse of statement `id` under its name on every server, and a Close of the least used one when
    /// there are too many.
    pub fn prepare(&mut self, id: u64, text: &str, types: &[u32], answer: Answer) {
        if self.prepared.len() >= PREPARED_MAX
            && let Some(oldest) = self
                .prepared
                .iter()
                .min_by_key(|(_, used)| **used)
                .map(|(id, _)| *id)
        {
            self.prepared.remove(&oldest);
            self.plain.remove(&oldest);
            self.close_statement(&statement_name(oldest), Answer::Hidden);
        }
        let name = statement_name(id);
        if self.residue.stays() {
            // Code may have made a statement of this name. It is no error if not.
            self.close_statement(&name, Answer::Hidden);
        }
        self.put_parse(&name, text, types);
        self.owe(Step::Parse, answer);
        self.prepared.insert(id, self.uses);
        self.plain.remove(&id);
    }

    fn put_parse(&mut self, name: &str, text: &str, types: &[u32]) {
        let foreign = self.shard.types.as_ref();
        match foreign.filter(|_| types.iter().any(|oid| *oid >= types::FIRST_USER_OID)) {
            None => message::put_parse(&mut self.wire.output, name, text, types),
            Some(foreign) => {
                let map = foreign.map();
                // A pair that was lost since it was looked for: no server knows the last OID.
                let translate = |oid: &u32| map.to_shard(*oid).unwrap_or(u32::MAX);
                let types: Vec<u32> = types.iter().map(translate).collect();
                message::put_parse(&mut self.wire.output, name, text, &types);
            }
        }
    }

    // ---- Bind, Describe, Execute, Close ----

    /// Bind; `rest` is all that follows the names.
    pub fn bind(&mut self, portal: &str, statement: &str, rest: &[u8], answer: Answer) {
        message::put_bind(&mut self.wire.output, portal, statement, rest);
        self.owe(Step::Bind, answer);
    }

    /// Bind of the unnamed statement to the unnamed portal, with the client's parameters and formats of
    /// ours for the results.
    pub fn bind_with(&mut self, parameters: &[u8], formats: &[i16]) {
        message::put_bind_with_formats(&mut self.wire.output, parameters, formats);
        self.owe(Step::Bind, Answer::Hidden);
    }

    /// The same, with all that follows the names written by `write`.
    pub fn bind_written(&mut self, write: impl FnOnce(&mut BytesMut)) {
        message::framed(&mut self.wire.output, b'B', |body| {
            body.put_u16(0);
            write(body);
        });
        self.owe(Step::Bind, Answer::Hidden);
    }

    /// Describe of a prepared statement.
    pub fn describe_statement(&mut self, name: &str, answer: Answer) {
        message::put_describe(&mut self.wire.output, b'S', name);
        self.owe(Step::Describe, answer);
    }

    /// Describe of a portal.
    pub fn describe_portal(&mut self, name: &str, answer: Answer) {
        message::put_describe(&mut self.wire.output, b'P', name);
        self.owe(Step::Describe, answer);
    }

    /// Execute. The rows of a portal with results in `binary` may hold OIDs: unless its prepared
    /// statement is known to have none, its columns are asked for.
    pub fn execute(
        &mut self,
        portal: &str,
        limit: i32,
        answer: Answer,
        binary: bool,
        statement: Option<u64>,
    ) {
        let known_plain = statement.is_some_and(|id| self.plain.contains(&id));
        if binary && !known_plain && self.shard.types.is_some() {
            message::put_describe(&mut self.wire.output, b'P', portal);
            self.owe(Step::Columns { statement }, Answer::Hidden);
        }
        message::put_execute(&mut self.wire.output, portal, limit);
        self.owe(Step::Execute, answer);
    }

    /// Execute of the unnamed portal to its end, with rows as text or for nobody's eyes.
    pub fn execute_unnamed(&mut self, answer: Answer) {
        self.execute("", 0, answer, false, None);
    }

    /// Close of a prepared statement, whether or not it exists.
    pub fn close_statement(&mut self, name: &str, answer: Answer) {
        message::put_close(&mut self.wire.output, b'S', name);
        self.owe(Step::Close, answer);
    }

    /// Close of a portal, whether or not it exists.
    pub fn close_portal(&mut self, name: &str, answer: Answer) {
        message::put_close(&mut self.wire.output, b'P', name);
        self.owe(Step::Close, answer);
    }

    // ---- statements of ours ----

    /// A statement without parameters, without Sync.
    pub fn run(&mut self, text: &str, answer: Answer) {
        self.parse(text, &[], answer);
        self.bind("", "", ALL_AS_TEXT, answer);
        self.execute_unnamed(answer);
    }

    /// A statement of the proxy's own, without Sync. It is prepared at its first use.
    pub fn execute_own(&mut self, own: Own, answer: Answer) {
        // Clients' statements count from 1.
        let id = u64::MAX - own as u64;
        let name = if self.residue.stays() {
            // Code may have given the name to another statement.
            self.parse(own.text(), &[], Answer::Hidden);
            String::new()
        } else {
            if !self.has_prepared(id) {
                self.prepare(id, own.text(), &[], Answer::Hidden);
            }
            statement_name(id)
        };
        self.bind("", &name, ALL_AS_TEXT, Answer::Hidden);
        self.execute("", 0, answer, false, Some(id));
    }

    /// A call of a function of ours, with its own Sync: what the server says of it ends there.
    pub fn call(&mut self, call: &Call, answer: Answer) {
        message::put_parse(&mut self.wire.output, "", &call.text(), &[]);
        self.owe(Step::CallParse, Answer::Hidden);
        self.unnamed = None;
        let proof = self.proof(&call.function);
        let mut rest = BytesMut::new();
        rest.put_u16(0);
        rest.put_u16(call.arguments.len() as u16 + 1);
        put_value(&mut rest, Some(&proof));
        for argument in &call.arguments {
            put_value(&mut rest, argument.as_deref());
        }
        rest.put_u16(0);
        message::put_bind(&mut self.wire.output, "", "", &rest);
        self.owe(Step::CallBind, Answer::Hidden);
        message::put_execute(&mut self.wire.output, "", 0);
        self.owe(Step::CallExecute, answer);
        message::put_sync(&mut self.wire.output);
        self.owe(Step::CallSync, Answer::Hidden);
    }

    /// Code may have made and dropped prepared statements: their end, so that what is used next is
    /// prepared again.
    pub fn end_doubtful(&mut self) {
        let ids: Vec<u64> = self.prepared.keys().copied().collect();
        for id in ids {
            self.close_statement(&statement_name(id), Answer::Hidden);
        }
        self.forget_prepared(None);
        self.doubtful = false;
    }

    // ---- COPY: what answers is the statement that it belongs to ----

    /// A piece of COPY data.
    pub fn copy_data(&mut self, data: &[u8]) {
        message::framed(&mut self.wire.output, b'd', |body| {
            body.extend_from_slice(data)
        });
    }

    /// A client's CopyData, CopyDone or CopyFail, as it is.
    pub fn copy_message(&mut self, bytes: &[u8]) {
        self.wire.output.extend_from_slice(bytes);
    }

    /// The end of COPY data.
    pub fn copy_done(&mut self) {
        message::put_copy_done(&mut self.wire.output);
    }

    /// The same, so that nothing of them is kept.
    pub fn copy_fail(&mut self, reason: &str) {
        message::put_copy_fail(&mut self.wire.output, reason);
    }
}
