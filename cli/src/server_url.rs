//! libpq's connection URLs (manual, "Connection URIs"): `postgres://user:password@host:port/database?sslmode=...`.

use std::{fmt::Write, path::PathBuf};

use automator67_proxy::settings::{ShardAuth, ShardHost, ShardTls};
use thiserror::Error;

const DEFAULT_PORT: u16 = 5432;

/// Why a URL is not one. No variant carries the URL: it may hold a password.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UrlError {
    /// Another scheme.
    #[error("the URL does not start with postgres:// or postgresql://")]
    Scheme,
    /// `%` without two hexadecimal digits, or bytes that are not UTF-8.
    #[error("the URL holds a wrong percent encoding")]
    Encoding,
    /// A port that is no number.
    #[error("the port \"{0}\" is not a number between 1 and 65535")]
    Port(String),
    /// `[` without `]`.
    #[error("the address in brackets is not closed")]
    Brackets,
    /// `a,b`.
    #[error("the URL names several hosts; name one")]
    Hosts,
    /// Something required is missing.
    #[error("the URL names no {0}")]
    Missing(&'static str),
    /// A value of `sslmode` we do not have.
    #[error("sslmode \"{0}\" is not one of disable, prefer, require, verify-ca, verify-full")]
    Sslmode(String),
    /// A value of `require_auth` we do not have.
    #[error(
        "require_auth \"{0}\" is not a list of scram-sha-256, md5, password, none, or of these with ! before each"
    )]
    RequireAuth(String),
    /// An unknown parameter.
    #[error(
        "unknown URL parameter \"{0}\" (known: sslmode, sslrootcert, require_auth, host, port, dbname, user, password, application_name)"
    )]
    Parameter(String),
}

/// A server and a login, from a URL.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl {
    /// Role.
    pub user: String,
    /// Its password; empty when the URL has none.
    pub password: String,
    /// Where it listens; an absolute path is the directory of a Unix socket.
    pub host: ShardHost,
    /// TCP port, or the number in the socket's name.
    pub port: u16,
    /// Database; by default the user's name.
    pub database: String,
    /// `sslmode`; by default prefer, and disable over Unix sockets.
    pub tls: ShardTls,
    /// `sslrootcert`.
    pub tls_root: Option<PathBuf>,
    /// `require_auth`, where the URL says it.
    pub auth: Option<ShardAuth>,
}

#[derive(Default)]
struct Parts {
    user: Option<String>,
    password: Option<String>,
    host: Option<String>,
    port: Option<u16>,
    database: Option<String>,
    tls: Option<ShardTls>,
    tls_root: Option<PathBuf>,
    auth: Option<ShardAuth>,
}

impl ServerUrl {
    /// Reads a URL.
    pub fn parse(url: &str) -> Result<ServerUrl, UrlError> {
        let rest = ["postgres://", "postgresql://"]
            .iter()
            .find_map(|scheme| url.strip_prefix(scheme))
            .ok_or(UrlError::Scheme)?;
        let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        let mut parts = Parts::default();
        let place = match authority.rsplit_once('@') {
            Some((login, place)) => {
                let (user, password) = login.split_once(':').unwrap_or((login, ""));
                parts.user = filled(decode(user)?);
                parts.password = filled(decode(password)?);
                place
            }
            None => authority,
        };
        parts.read_place(place)?;
        parts.database = filled(decode(database)?);
        for parameter in parameters.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            parts.read_parameter(&decode(name)?, decode(value)?)?;
        }
        parts.finish()
    }
}

impl Parts {
    fn read_place(&mut self, place: &str) -> Result<(), UrlError> {
        if place.contains(',') {
            return Err(UrlError::Hosts);
        }
        let (host, port) = match place.strip_prefix('[') {
            Some(bracketed) => {
                let (host, rest) = bracketed.split_once(']').ok_or(UrlError::Brackets)?;
                (host, rest.strip_prefix(':').unwrap_or(rest))
            }
            None => place.split_once(':').unwrap_or((place, "")),
        };
        self.host = filled(decode(host)?);
        if !port.is_empty() {
            self.port = Some(read_port(port)?);
        }
        Ok(())
    }

    fn read_parameter(&mut self, name: &str, value: String) -> Result<(), UrlError> {
        match name {
            "sslmode" => self.tls = Some(read_sslmode(value)?),
            "require_auth" => self.auth = Some(read_auth(value)?),
            "sslrootcert" => self.tls_root = filled(value).map(PathBuf::from),
            "host" if value.contains(',') => return Err(UrlError::Hosts),
            "host" => self.host = filled(value),
            "port" => self.port = Some(read_port(&value)?),
            "dbname" => self.database = filled(value),
            "user" => self.user = filled(value),
            "password" => self.password = filled(value),
            "application_name" => {}
            _ => return Err(UrlError::Parameter(name.to_owned())),
        }
        Ok(())
    }

    fn finish(self) -> Result<ServerUrl, UrlError> {
        let user = self.user.ok_or(UrlError::Missing("user"))?;
        let host = self.host.ok_or(UrlError::Missing("host"))?;
        let (host, tls) = if host.starts_with('/') {
            (ShardHost::Unix(host.into()), ShardTls::Disable)
        } else {
            (ShardHost::Tcp(host), self.tls.unwrap_or(ShardTls::Prefer))
        };
        Ok(ServerUrl {
            database: self.database.unwrap_or_else(|| user.clone()),
            password: self.password.unwrap_or_default(),
            port: self.port.unwrap_or(DEFAULT_PORT),
            tls_root: self.tls_root,
            auth: self.auth,
            user,
            host,
            tls,
        })
    }
}

fn filled(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn read_port(text: &str) -> Result<u16, UrlError> {
    match text.parse() {
        Ok(0) | Err(_) => Err(UrlError::Port(text.to_owned())),
        Ok(port) => Ok(port),
    }
}

fn read_sslmode(text: String) -> Result<ShardTls, UrlError> {
    match text.as_str() {
        "disable" => Ok(ShardTls::Disable),
        "prefer" => Ok(ShardTls::Prefer),
        "require" => Ok(ShardTls::Require),
        "verify-ca" => Ok(ShardTls::VerifyCa),
        "verify-full" => Ok(ShardTls::VerifyFull),
        _ => Err(UrlError::Sslmode(text)),
    }
}

/// A list of what is allowed, or of what is not, never both (manual, "require_auth").
fn read_auth(text: String) -> Result<ShardAuth, UrlError> {
    let negated = text.starts_with('!');
    let mut auth = if negated {
        ShardAuth::ANY
    } else {
        ShardAuth {
            scram: false,
            ..ShardAuth::SCRAM
        }
    };
    for word in text.split(',') {
        let name = match word.strip_prefix('!') {
            Some(name) if negated => name,
            None if !negated => word,
            _ => return Err(UrlError::RequireAuth(text)),
        };
        match name {
            "scram-sha-256" => auth.scram = !negated,
            "md5" => auth.md5 = !negated,
            "password" => auth.password = !negated,
            "none" => auth.none = !negated,
            // We never use these.
            "gss" | "sspi" | "creds" if negated => {}
            _ => return Err(UrlError::RequireAuth(text)),
        }
    }
    Ok(auth)
}

fn decode(text: &str) -> Result<String, UrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
            _ => return Err(UrlError::Encoding),
        }
    }
    String::from_utf8(bytes).map_err(|_| UrlError::Encoding)
}

/// Text as a part of a URL: everything but letters, digits and `-._~` percent-encoded.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("a String takes everything");
        }
    }
    out
}

#[cfg(test)]
mod tests;
