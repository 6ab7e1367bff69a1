//! What a client is told when something fails: the fields of an ErrorResponse, and the one table
//! from our own causes to SQLSTATEs.

use bytes::{BufMut, BytesMut};

use crate::{frame::HEADER_BYTES, message};

/// SQLSTATEs we raise ourselves (manual, appendix "PostgreSQL Error Codes").
pub mod sqlstate {
    /// connection_failure
    pub const CONNECTION_FAILURE: &str = "08006";
    /// transaction_resolution_unknown
    pub const TRANSACTION_RESOLUTION_UNKNOWN: &str = "08007";
    /// invalid_text_representation
    pub const INVALID_TEXT_REPRESENTATION: &str = "22P02";
    /// protocol_violation
    pub const PROTOCOL_VIOLATION: &str = "08P01";
    /// feature_not_supported
    pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
    /// invalid_parameter_value
    pub const INVALID_PARAMETER_VALUE: &str = "22023";
    /// bad_copy_file_format
    pub const BAD_COPY_FILE_FORMAT: &str = "22P04";
    /// active_sql_transaction
    pub const ACTIVE_SQL_TRANSACTION: &str = "25001";
    /// no_active_sql_transaction
    pub const NO_ACTIVE_SQL_TRANSACTION: &str = "25P01";
    /// in_failed_sql_transaction
    pub const IN_FAILED_SQL_TRANSACTION: &str = "25P02";
    /// read_only_sql_transaction
    pub const READ_ONLY_SQL_TRANSACTION: &str = "25006";
    /// invalid_sql_statement_name
    pub const INVALID_SQL_STATEMENT_NAME: &str = "26000";
    /// invalid_authorization_specification
    pub const INVALID_AUTHORIZATION: &str = "28000";
    /// invalid_password
    pub const INVALID_PASSWORD: &str = "28P01";
    /// invalid_cursor_name
    pub const INVALID_CURSOR_NAME: &str = "34000";
    /// invalid_catalog_name
    pub const INVALID_CATALOG_NAME: &str = "3D000";
    /// deadlock_detected
    pub const DEADLOCK_DETECTED: &str = "40P01";
    /// invalid_savepoint_specification
    pub const INVALID_SAVEPOINT: &str = "3B001";
    /// syntax_error
    pub const SYNTAX_ERROR: &str = "42601";
    /// duplicate_cursor
    pub const DUPLICATE_CURSOR: &str = "42P03";
    /// duplicate_prepared_statement
    pub const DUPLICATE_PREPARED_STATEMENT: &str = "42P05";
    /// insufficient_privilege
    pub const INSUFFICIENT_PRIVILEGE: &str = "42501";
    /// sequence_generator_limit_exceeded
    pub const SEQUENCE_LIMIT: &str = "2200H";
    /// undefined_table
    pub const UNDEFINED_TABLE: &str = "42P01";
    /// invalid_schema_name
    pub const INVALID_SCHEMA_NAME: &str = "3F000";
    /// object_not_in_prerequisite_state
    pub const OBJECT_NOT_IN_STATE: &str = "55000";
    /// object_in_use
    pub const OBJECT_IN_USE: &str = "55006";
    /// lock_not_available
    pub const LOCK_NOT_AVAILABLE: &str = "55P03";
    /// insufficient_resources
    pub const INSUFFICIENT_RESOURCES: &str = "53000";
    /// too_many_connections
    pub const TOO_MANY_CONNECTIONS: &str = "53300";
    /// out_of_memory
    pub const OUT_OF_MEMORY: &str = "53200";
    /// program_limit_exceeded
    pub const PROGRAM_LIMIT_EXCEEDED: &str = "54000";
    /// configuration_limit_exceeded
    pub const LIMIT_EXCEEDED: &str = "53400";
    /// query_canceled
    pub const QUERY_CANCELED: &str = "57014";
    /// idle_in_transaction_session_timeout
    pub const IDLE_IN_TRANSACTION_TIMEOUT: &str = "25P03";
    /// transaction_timeout
    pub const TRANSACTION_TIMEOUT: &str = "25P04";
    /// idle_session_timeout
    pub const IDLE_SESSION_TIMEOUT: &str = "57P05";
    /// admin_shutdown
    pub const ADMIN_SHUTDOWN: &str = "57P01";
    /// internal_error
    pub const INTERNAL_ERROR: &str = "XX000";
}

/// How bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed.
    Error,
    /// The connection ends.
    Fatal,
    /// Something the user should know.
    Warning,
    /// Something the user may like to know.
    Notice,
}

impl Severity {
    fn text(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
            Severity::Warning => "WARNING",
            Severity::Notice => "NOTICE",
        }
    }
}

/// An error or notice of our own, in the server's wording: a lower-case message, a detail
/// sentence, a hint that says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// How bad.
    pub severity: Severity,
    /// Five characters.
    pub sqlstate: String,
    /// Lower case, no full stop.
    pub message: String,
    /// A sentence.
    pub detail: Option<String>,
    /// A sentence that says what to do.
    pub hint: Option<String>,
    /// 1-based character in the statement's text.
    pub position: Option<u32>,
    /// The server's function that would have said so: drivers know some errors by it.
    pub routine: Option<Routine>,
    /// The constraint that was violated.
    pub constraint: Option<Box<Constraint>>,
}

/// A constraint, as fields of an error name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    /// The table's schema.
    pub schema: String,
    /// The table.
    pub table: String,
    /// Its own name.
    pub name: String,
}

/// A function of the server that reports errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routine {
    /// A prepared statement has other columns than before.
    RevalidateCachedQuery,
}

impl Routine {
    fn text(self) -> &'static str {
        match self {
            Routine::RevalidateCachedQuery => "RevalidateCachedQuery",
        }
    }
}

impl Report {
    /// An ERROR.
    pub fn error(sqlstate: &str, message: impl Into<String>) -> Self {
        Report {
            severity: Severity::Error,
            sqlstate: sqlstate.to_owned(),
            message: message.into(),
            detail: None,
            hint: None,
            position: None,
            routine: None,
            constraint: None,
        }
    }

    /// The same as the end of the connection.
    pub fn fatal(self) -> Self {
        Report {
            severity: Severity::Fatal,
            ..self
        }
    }

    /// The same as a warning.
    pub fn warning(self) -> Self {
        Report {
            severity: Severity::Warning,
            ..self
        }
    }

    /// With a detail sentence.
    pub fn detail(self, detail: impl Into<String>) -> Self {
        Report {
            detail: Some(detail.into()),
            ..self
        }
    }

    /// With a hint.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Report {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// A server's ErrorResponse.
    pub fn of_frame(frame: &[u8]) -> Self {
        Report::of_body(frame.get(HEADER_BYTES..).unwrap_or_default())
    }

    /// The body of a server's ErrorResponse.
    pub fn of_body(body: &[u8]) -> Self {
        let field = |code| message::error_field(body, code).map(str::to_owned);
        Report {
            severity: Severity::Error,
            sqlstate: field(b'C').unwrap_or_else(|| sqlstate::INTERNAL_ERROR.to_owned()),
            message: field(b'M').unwrap_or_default(),
            detail: field(b'D'),
            hint: field(b'H'),
            position: field(b'P').and_then(|position| position.parse().ok()),
            routine: None,
            constraint: None,
        }
    }

    /// As if said by this function of the server.
    pub fn routine(self, routine: Routine) -> Self {
        Report {
            routine: Some(routine),
            ..self
        }
    }

    /// About this constraint of a table.
    pub fn constraint(self, schema: &str, table: &str, name: &str) -> Self {
        Report {
            constraint: Some(Box::new(Constraint {
                schema: schema.to_owned(),
                table: table.to_owned(),
                name: name.to_owned(),
            })),
            ..self
        }
    }

    /// A protocol violation.
    pub fn protocol(message: impl Into<String>) -> Self {
        Report::error(sqlstate::PROTOCOL_VIOLATION, message)
    }

    /// Appends an ErrorResponse, or a NoticeResponse for warnings.
    pub fn write(&self, output: &mut BytesMut) {
        let tag = match self.severity {
            Severity::Error | Severity::Fatal => b'E',
            Severity::Warning | Severity::Notice => b'N',
        };
        message::framed(output, tag, |body| {
            let position = self.position.map(|position| position.to_string());
            let constraint = self.constraint.as_deref();
            let fields = [
                (b'S', Some(self.severity.text())),
                (b'V', Some(self.severity.text())),
                (b'C', Some(self.sqlstate.as_str())),
                (b'M', Some(self.message.as_str())),
                (b'D', self.detail.as_deref()),
                (b'H', self.hint.as_deref()),
                (b'P', position.as_deref()),
                (
                    b's',
                    constraint.map(|constraint| constraint.schema.as_str()),
                ),
                (b't', constraint.map(|constraint| constraint.table.as_str())),
                (b'n', constraint.map(|constraint| constraint.name.as_str())),
                (b'R', self.routine.map(Routine::text)),
            ];
            for (code, value) in fields {
                if let Some(value) = value {
                    body.put_u8(code);
                    put_without_nul(body, value);
                }
            }
            body.put_u8(0);
        });
    }
}

fn put_without_nul(body: &mut BytesMut, value: &str) {
    body.extend(value.bytes().filter(|byte| *byte != 0));
    body.put_u8(0);
}

impl From<automator67_planner::plan::PlanError> for Report {
    fn from(error: automator67_planner::plan::PlanError) -> Self {
        Report {
            severity: Severity::Error,
            sqlstate: error.sqlstate.to_owned(),
            message: error.message,
            detail: error.detail,
            hint: error.hint,
            position: error
                .position
                .and_then(|position| u32::try_from(position).ok()),
            routine: None,
            constraint: None,
        }
    }
}

/// Why a statement ended without an answer.
#[derive(Debug)]
pub enum Failure {
    /// Our own refusal or finding.
    Report(Box<Report>),
    /// A shard's ErrorResponse, as received (type byte and all).
    Shard(BytesMut),
    /// The client has been told already: an error with this code was passed on.
    Told(SqlState),
    /// The last word to the client: the session ends.
    Farewell(Box<Report>),
    /// The client is gone or broke the protocol: nothing more can be told to it.
    ClientGone,
}

impl From<Report> for Failure {
    fn from(report: Report) -> Self {
        Failure::Report(Box::new(report))
    }
}

impl From<automator67_planner::plan::PlanError> for Failure {
    fn from(error: automator67_planner::plan::PlanError) -> Self {
        Report::from(error).into()
    }
}

impl Failure {
    /// Appends the ErrorResponse, if there is one to tell.
    pub fn write(&self, output: &mut BytesMut) {
        match self {
            Failure::Report(report) | Failure::Farewell(report) => report.write(output),
            Failure::Shard(frame) => output.extend_from_slice(frame),
            Failure::Told(_) | Failure::ClientGone => {}
        }
    }

    /// The SQLSTATE, for logs and metrics.
    pub fn sqlstate(&self) -> &str {
        match self {
            Failure::Report(report) | Failure::Farewell(report) => &report.sqlstate,
            Failure::Shard(frame) => {
                crate::message::error_field(&frame[crate::frame::HEADER_BYTES..], b'C')
                    .unwrap_or(sqlstate::INTERNAL_ERROR)
            }
            Failure::Told(code) => code.as_str(),
            Failure::ClientGone => sqlstate::CONNECTION_FAILURE,
        }
    }
}

/// Five characters that say what an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// From text; what is none is an internal error.
    pub fn of(text: &str) -> SqlState {
        let known = <[u8; 5]>::try_from(text.as_bytes()).ok();
        SqlState(known.unwrap_or(*b"XX000"))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or(sqlstate::INTERNAL_ERROR)
    }
}

/// What a step of a statement returns.
pub type Outcome<T = ()> = Result<T, Failure>;
