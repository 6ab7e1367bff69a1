//! Runs a case file on one server and keeps every answer.

use anyhow::{Context, Result, bail};
use bytes::{BufMut, Bytes, BytesMut};
use postgres_protocol::{IsNull, message::frontend};

use crate::{
    answer::{self, Event, TypeNames},
    cases::{Case, CaseFile, CopyData, Kind, Parameter},
    wire::{Connection, Frame, Server},
};

/// Which protocol and which result format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Simple protocol, results in text.
    Simple,
    /// Extended protocol, results in text.
    Text,
    /// Extended protocol, results in binary.
    Binary,
}

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Plain Postgres: the expected answer.
    Plain,
    /// The proxy.
    Proxy,
}

/// What became of one case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Played {
    /// Not for this server or this mode.
    Skipped,
    /// Its answer.
    Answered(Vec<Event>),
    /// The connection broke, or nothing came in time.
    Lost(String),
}

/// Runs every case of `file` in a database without user objects. One entry for each case.
pub fn play(server: &Server, role: Role, file: &CaseFile, mode: Mode) -> Result<Vec<Played>> {
    clear(server)?;
    replay(server, role, file, mode)
}

/// Runs every case of `file` in the database as it is.
pub fn replay(server: &Server, role: Role, file: &CaseFile, mode: Mode) -> Result<Vec<Played>> {
    let mut player = Player {
        server,
        role,
        mode,
        connection: Connection::open(server)?,
        names: TypeNames::new(),
        last_copy: Bytes::new(),
    };
    file.cases.iter().map(|case| player.play(case)).collect()
}

/// Drops every schema of the user's and makes `public` anew.
pub fn clear(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let schemas = connection.rows(
        "select quote_ident(nspname) from pg_namespace where nspname !~ '^pg_' \
         and nspname not in ('information_schema', 'automator67', 'automator67_index')",
    )?;
    for schema in schemas.into_iter().flatten().flatten() {
        connection.execute(&format!("drop schema {schema} cascade"))?;
    }
    connection.execute("create schema public")?;
    connection.terminate()
}

struct Player<'a> {
    server: &'a Server,
    role: Role,
    mode: Mode,
    connection: Connection,
    names: TypeNames,
    last_copy: Bytes,
}

impl Player<'_> {
    fn play(&mut self, case: &Case) -> Result<Played> {
        let skipped = match case.kind {
            Kind::Proxy | Kind::Refused(_) | Kind::Fails(_) => self.role == Role::Plain,
            Kind::Plain => self.role == Role::Proxy,
            Kind::Same => self.mode == Mode::Simple && case.bind.is_some(),
            Kind::Setup => false,
            Kind::Reconnect => {
                self.connection = Connection::open(self.server)?;
                true
            }
        };
        if skipped {
            return Ok(Played::Skipped);
        }
        match self.frames(case) {
            Ok(frames) => {
                self.remember_copy(&frames);
                self.learn_types(&frames)?;
                Ok(Played::Answered(answer::events(&frames, &self.names)?))
            }
            Err(error) => {
                self.connection = Connection::open(self.server)?;
                Ok(Played::Lost(format!("{error:#}")))
            }
        }
    }

    fn frames(&mut self, case: &Case) -> Result<Vec<Frame>> {
        let simple = matches!(case.kind, Kind::Setup | Kind::Plain | Kind::Proxy)
            || self.mode == Mode::Simple;
        let mut bytes = BytesMut::new();
        if simple {
            frontend::query(&case.text, &mut bytes)?;
        } else {
            let format = i16::from(self.mode == Mode::Binary);
            let parameters = case.bind.as_deref().unwrap_or_default();
            let types = self.type_oids(parameters)?;
            put_extended(&mut bytes, &case.text, parameters, types, format)?;
        }
        self.connection.send(&bytes)?;
        self.until_ready(case, !simple)
    }

    /// Like [`Connection::until_ready`], and answers CopyInResponse.
    fn until_ready(&mut self, case: &Case, extended: bool) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        loop {
            let frame = self.connection.receive()?;
            let tag = frame.tag;
            match tag {
                b'N' | b'A' | b'S' => continue,
                _ => frames.push(frame),
            }
            if tag == b'Z' {
                return Ok(frames);
            }
            if tag == b'G' {
                let data = match &case.copy {
                    Some(CopyData::Text(text)) => Some(Bytes::from(text.clone())),
                    Some(CopyData::Last) => Some(self.last_copy.clone()),
                    None => None,
                };
                self.connection.send(&copy_answer(data, extended)?)?;
            }
        }
    }

    fn remember_copy(&mut self, frames: &[Frame]) {
        let data: Vec<u8> = frames
            .iter()
            .filter(|frame| frame.tag == b'd')
            .flat_map(|frame| frame.body.to_vec())
            .collect();
        if !data.is_empty() {
            self.last_copy = data.into();
        }
    }

    fn learn_types(&mut self, frames: &[Frame]) -> Result<()> {
        if !answer::mentions_unknown_types(frames, &self.names) {
            return Ok(());
        }
        for (oid, name) in self.user_types()? {
            self.names.insert(oid, name);
        }
        Ok(())
    }

    /// The types that the server has now, as a client finds them.
    fn user_types(&self) -> Result<TypeNames> {
        let mut types = TypeNames::new();
        let mut connection = Connection::open(self.server)?;
        for row in connection.rows("select oid, typname from pg_type where oid >= 16384")? {
            if let [Some(oid), Some(name)] = row.as_slice() {
                types.insert(oid.parse()?, name.clone());
            }
        }
        connection.terminate()?;
        Ok(types)
    }

    /// What Parse says about the parameters: 0 where nothing is declared.
    fn type_oids(&self, parameters: &[Parameter]) -> Result<Vec<u32>> {
        let oid = |parameter: &Parameter| {
            let name = &parameter.type_name;
            match (parameter.declared, postgres_type(name)) {
                (false, _) => Ok(0),
                (true, Some(oid)) => Ok(oid),
                (true, None) => {
                    let types = self.user_types()?;
                    let found = types.into_iter().find(|(_, known)| known == name);
                    found
                        .map(|(oid, _)| oid)
                        .with_context(|| format!("unknown type {name}"))
                }
            }
        };
        parameters.iter().map(oid).collect()
    }
}

/// COPY data in chunks that do not respect rows, then the end; or a refusal.
fn copy_answer(data: Option<Bytes>, extended: bool) -> Result<BytesMut> {
    const CHUNK_BYTES: usize = 37;
    let mut bytes = BytesMut::new();
    match data {
        Some(data) => {
            for chunk in data.chunks(CHUNK_BYTES) {
                bytes.put_u8(b'd');
                bytes.put_u32(u32::try_from(chunk.len())? + 4);
                bytes.put_slice(chunk);
            }
            frontend::copy_done(&mut bytes);
        }
        None => frontend::copy_fail("no data for this case", &mut bytes)?,
    }
    if extended {
        // The Sync behind Execute was swallowed by copy-in mode.
        frontend::sync(&mut bytes);
    }
    Ok(bytes)
}

/// Parse, Describe, Bind, Describe, Execute, Sync of the unnamed statement. `types` are told in
/// Parse.
pub fn put_extended(
    bytes: &mut BytesMut,
    text: &str,
    parameters: &[Parameter],
    types: Vec<u32>,
    result_format: i16,
) -> Result<()> {
    frontend::parse("", text, types, bytes)?;
    frontend::describe(b'S', "", bytes)?;
    let formats = parameters
        .iter()
        .map(|parameter| i16::from(parameter.binary));
    frontend::bind(
        "",
        "",
        formats,
        parameters,
        |parameter, output| Ok(put_value(parameter, output)?),
        [result_format],
        bytes,
    )
    .map_err(|_| anyhow::anyhow!("a parameter cannot be encoded"))?;
    frontend::describe(b'P', "", bytes)?;
    frontend::execute("", 0, bytes)?;
    frontend::sync(bytes);
    Ok(())
}

fn put_value(parameter: &Parameter, output: &mut BytesMut) -> Result<IsNull> {
    let Some(value) = &parameter.value else {
        return Ok(IsNull::Yes);
    };
    if parameter.binary {
        put_binary(&parameter.type_name, value, output)?;
    } else {
        output.put_slice(value.as_bytes());
    }
    Ok(IsNull::No)
}

fn put_binary(type_name: &str, value: &str, output: &mut BytesMut) -> Result<()> {
    match type_name {
        "int2" => output.put_i16(value.parse()?),
        "int4" | "date" => output.put_i32(value.parse()?),
        // Microseconds (timestamps) since 2000-01-01.
        "int8" | "timestamp" | "timestamptz" => output.put_i64(value.parse()?),
        "float4" => output.put_f32(value.parse()?),
        "float8" => output.put_f64(value.parse()?),
        "bool" => output.put_u8(u8::from(value == "true")),
        "text" | "varchar" | "bpchar" | "unknown" | "name" => output.put_slice(value.as_bytes()),
        "uuid" => {
            let digits = value.replace('-', "");
            output.put_u128(u128::from_str_radix(&digits, 16)?);
        }
        "bytea" => {
            let digits = value.strip_prefix("\\x").context("bytea in hexadecimal")?;
            for place in (0..digits.len()).step_by(2) {
                let byte = digits.get(place..place + 2).context("pairs of digits")?;
                output.put_u8(u8::from_str_radix(byte, 16)?);
            }
        }
        "numeric" => put_numeric(value, output)?,
        other => bail!("no binary form of {other} here"),
    }
    Ok(())
}

/// A number without sign as `numeric_recv` reads it: digits to the base 10,000.
fn put_numeric(value: &str, output: &mut BytesMut) -> Result<()> {
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let groups = whole.len().div_ceil(4);
    let digits = format!("{whole:0>width$}{fraction}", width = groups * 4);
    let digits = format!("{digits:0<width$}", width = digits.len().div_ceil(4) * 4);
    output.put_i16(i16::try_from(digits.len() / 4)?);
    output.put_i16(i16::try_from(groups)? - 1);
    output.put_i16(0);
    output.put_i16(i16::try_from(fraction.len())?);
    for place in (0..digits.len()).step_by(4) {
        output.put_i16(digits[place..place + 4].parse()?);
    }
    Ok(())
}

/// The OID of a built-in type by the name that case files use.
pub fn postgres_type(name: &str) -> Option<u32> {
    let types = [
        ("bool", 16),
        ("name", 19),
        ("int8", 20),
        ("int2", 21),
        ("int4", 23),
        ("text", 25),
        ("float4", 700),
        ("float8", 701),
        ("unknown", 705),
        ("bpchar", 1042),
        ("varchar", 1043),
        ("date", 1082),
        ("timestamp", 1114),
        ("timestamptz", 1184),
        ("numeric", 1700),
        ("uuid", 2950),
        ("int4[]", 1007),
        ("int8[]", 1016),
        ("text[]", 1009),
    ];
    types
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, oid)| *oid)
}
