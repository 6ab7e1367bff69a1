//! The eight TPC-H tables (TPC-H specification, section 1.4), filled by COPY.

use std::{fmt::Write, path::Path};

use anyhow::{Context, Result, bail};
use bytes::{BufMut, BytesMut};
use postgres_protocol::message::frontend;
use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator,
    PartSuppGenerator, RegionGenerator, SupplierGenerator,
};

use crate::wire::Connection;

/// Scale of the tests: 60,175 line items.
pub const SCALE: f64 = 0.01;

const TABLES: &[&str] = &[
    "create table region (r_regionkey integer primary key, r_name char(25) not null, \
     r_comment varchar(152))",
    "create table nation (n_nationkey integer primary key, n_name char(25) not null, \
     n_regionkey integer not null, n_comment varchar(152))",
    "create table part (p_partkey bigint primary key, p_name varchar(55) not null, \
     p_mfgr char(25) not null, p_brand char(10) not null, p_type varchar(25) not null, \
     p_size integer not null, p_container char(10) not null, \
     p_retailprice numeric(15,2) not null, p_comment varchar(23) not null)",
    "create table supplier (s_suppkey bigint primary key, s_name char(25) not null, \
     s_address varchar(40) not null, s_nationkey integer not null, s_phone char(15) not null, \
     s_acctbal numeric(15,2) not null, s_comment varchar(101) not null)",
    "create table partsupp (ps_partkey bigint, ps_suppkey bigint, ps_availqty integer not null, \
     ps_supplycost numeric(15,2) not null, ps_comment varchar(199) not null, \
     primary key (ps_partkey, ps_suppkey))",
    "create table customer (c_custkey bigint primary key, c_name varchar(25) not null, \
     c_address varchar(40) not null, c_nationkey integer not null, c_phone char(15) not null, \
     c_acctbal numeric(15,2) not null, c_mktsegment char(10) not null, \
     c_comment varchar(117) not null)",
    "create table orders (o_orderkey bigint primary key, o_custkey bigint not null, \
     o_orderstatus char(1) not null, o_totalprice numeric(15,2) not null, \
     o_orderdate date not null, o_orderpriority char(15) not null, o_clerk char(15) not null, \
     o_shippriority integer not null, o_comment varchar(79) not null)",
    "create table lineitem (l_orderkey bigint, l_partkey bigint not null, \
     l_suppkey bigint not null, l_linenumber integer, l_quantity numeric(15,2) not null, \
     l_extendedprice numeric(15,2) not null, l_discount numeric(15,2) not null, \
     l_tax numeric(15,2) not null, l_returnflag char(1) not null, l_linestatus char(1) not null, \
     l_shipdate date not null, l_commitdate date not null, l_receiptdate date not null, \
     l_shipinstruct char(25) not null, l_shipmode char(10) not null, \
     l_comment varchar(44) not null, primary key (l_orderkey, l_linenumber))",
];

const PLACEMENTS: &[&str] = &[
    "select create_reference_table('region')",
    "select create_reference_table('nation')",
    "select create_distributed_table('part', 'p_partkey')",
    "select create_distributed_table('supplier', 's_suppkey', colocate_with => 'none')",
    "select create_distributed_table('partsupp', 'ps_partkey', colocate_with => 'part')",
    "select create_distributed_table('customer', 'c_custkey', colocate_with => 'none')",
    "select create_distributed_table('orders', 'o_orderkey', colocate_with => 'none')",
    "select create_distributed_table('lineitem', 'l_orderkey', colocate_with => 'orders')",
];

/// Makes the tables, distributes them when `placed`, and fills them.
pub fn load(connection: &mut Connection, placed: bool) -> Result<()> {
    for statement in TABLES {
        connection.execute(statement)?;
    }
    if placed {
        for statement in PLACEMENTS {
            connection.execute(statement)?;
        }
    }
    copy(
        connection,
        "region",
        RegionGenerator::new(SCALE, 1, 1).iter(),
    )?;
    copy(
        connection,
        "nation",
        NationGenerator::new(SCALE, 1, 1).iter(),
    )?;
    copy(connection, "part", PartGenerator::new(SCALE, 1, 1).iter())?;
    copy(
        connection,
        "supplier",
        SupplierGenerator::new(SCALE, 1, 1).iter(),
    )?;
    copy(
        connection,
        "partsupp",
        PartSuppGenerator::new(SCALE, 1, 1).iter(),
    )?;
    copy(
        connection,
        "customer",
        CustomerGenerator::new(SCALE, 1, 1).iter(),
    )?;
    copy(
        connection,
        "orders",
        OrderGenerator::new(SCALE, 1, 1).iter(),
    )?;
    copy(
        connection,
        "lineitem",
        LineItemGenerator::new(SCALE, 1, 1).iter(),
    )?;
    connection.execute("analyze")?;
    Ok(())
}

/// The generators print rows as `dbgen` does: `1|text|...|`, with a `|` behind the last field.
fn copy<T: std::fmt::Display>(
    connection: &mut Connection,
    table: &str,
    rows: impl Iterator<Item = T>,
) -> Result<()> {
    const CHUNK_BYTES: usize = 60_000;
    let mut bytes = BytesMut::new();
    frontend::query(
        &format!("copy {table} from stdin with (delimiter '|')"),
        &mut bytes,
    )?;
    connection.send(&bytes)?;
    let answer = connection.receive()?;
    if answer.tag != b'G' {
        bail!("copy {table}: {}", answer.field(b'M').unwrap_or_default());
    }
    let mut chunk = String::new();
    for row in rows {
        write!(chunk, "{row}")?;
        while chunk.ends_with(['|', '\n']) {
            chunk.pop();
        }
        chunk.push('\n');
        if chunk.len() > CHUNK_BYTES {
            send_data(connection, &chunk)?;
            chunk.clear();
        }
    }
    send_data(connection, &chunk)?;
    connection.send(b"c\0\0\0\x04")?;
    let frames = connection.until_ready()?;
    match frames.iter().find(|frame| frame.tag == b'E') {
        Some(error) => bail!("copy {table}: {}", error.field(b'M').unwrap_or_default()),
        None => Ok(()),
    }
}

fn send_data(connection: &mut Connection, data: &str) -> Result<()> {
    let mut bytes = BytesMut::new();
    bytes.put_u8(b'd');
    bytes.put_u32(u32::try_from(data.len())? + 4);
    bytes.put_slice(data.as_bytes());
    connection.send(&bytes)
}

/// The 22 queries, as `automator67 demo tpch` runs them: name and text.
pub fn queries() -> Result<Vec<(String, String)>> {
    let directory = Path::new("../cli/src/demo/tpch");
    (1..=22)
        .map(|number| {
            let name = format!("q{number:02}");
            let path = directory.join(format!("{name}.sql"));
            let text = std::fs::read_to_string(&path)
                .with_context(|| format!("read {}", path.display()))?;
            Ok((name, text.trim().trim_end_matches(';').to_owned()))
        })
        .collect()
}
