//! The eight tables (TPC-H specification, section 1.4) and their rows.

use std::fmt::Display;

use tpchgen::generators::{
    CustomerGenerator, LineItemGenerator, NationGenerator, OrderGenerator, PartGenerator,
    PartSuppGenerator, RegionGenerator, SupplierGenerator,
};

/// Rows as `dbgen` writes them: `1|text|...|`.
pub type Rows = Box<dyn Iterator<Item = String> + Send>;

/// A table.
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// What makes it.
    pub definition: &'static str,
    /// What places it: orders beside their line items, parts beside who supplies them.
    pub placement: &'static str,
    /// Its rows at a scale.
    pub rows: fn(f64) -> Rows,
    /// How many they are, for line items about.
    pub count: fn(f64) -> i64,
}

/// In an order in which colocation finds its partner, and the longest load begins early.
pub const TABLES: [Table; 8] = [
    Table {
        name: "orders",
        definition: "create table orders (o_orderkey bigint primary key, o_custkey bigint not null, \
            o_orderstatus char(1) not null, o_totalprice numeric(15,2) not null, \
            o_orderdate date not null, o_orderpriority char(15) not null, \
            o_clerk char(15) not null, o_shippriority integer not null, \
            o_comment varchar(79) not null)",
        placement: "create_distributed_table('orders', 'o_orderkey', colocate_with => 'none')",
        rows: |scale| written(OrderGenerator::new(scale, 1, 1).iter()),
        count: |scale| OrderGenerator::calculate_row_count(scale, 1, 1),
    },
    Table {
        name: "lineitem",
        definition: "create table lineitem (l_orderkey bigint, l_partkey bigint not null, \
            l_suppkey bigint not null, l_linenumber integer, l_quantity numeric(15,2) not null, \
            l_extendedprice numeric(15,2) not null, l_discount numeric(15,2) not null, \
            l_tax numeric(15,2) not null, l_returnflag char(1) not null, \
            l_linestatus char(1) not null, l_shipdate date not null, l_commitdate date not null, \
            l_receiptdate date not null, l_shipinstruct char(25) not null, \
            l_shipmode char(10) not null, l_comment varchar(44) not null, \
            primary key (l_orderkey, l_linenumber))",
        placement: "create_distributed_table('lineitem', 'l_orderkey', colocate_with => 'orders')",
        rows: |scale| written(LineItemGenerator::new(scale, 1, 1).iter()),
        // An order has one to seven.
        count: |scale| OrderGenerator::calculate_row_count(scale, 1, 1).saturating_mul(4),
    },
    Table {
        name: "part",
        definition: "create table part (p_partkey bigint primary key, p_name varchar(55) not null, \
            p_mfgr char(25) not null, p_brand char(10) not null, p_type varchar(25) not null, \
            p_size integer not null, p_container char(10) not null, \
            p_retailprice numeric(15,2) not null, p_comment varchar(23) not null)",
        placement: "create_distributed_table('part', 'p_partkey')",
        rows: |scale| written(PartGenerator::new(scale, 1, 1).iter()),
        count: |scale| PartGenerator::calculate_row_count(scale, 1, 1),
    },
    Table {
        name: "partsupp",
        definition: "create table partsupp (ps_partkey bigint, ps_suppkey bigint, \
            ps_availqty integer not null, ps_supplycost numeric(15,2) not null, \
            ps_comment varchar(199) not null, primary key (ps_partkey, ps_suppkey))",
        placement: "create_distributed_table('partsupp', 'ps_partkey', colocate_with => 'part')",
        rows: |scale| written(PartSuppGenerator::new(scale, 1, 1).iter()),
        // Four suppliers have a part.
        count: |scale| PartGenerator::calculate_row_count(scale, 1, 1).saturating_mul(4),
    },
    Table {
        name: "customer",
        definition: "create table customer (c_custkey bigint primary key, \
            c_name varchar(25) not null, c_address varchar(40) not null, \
            c_nationkey integer not null, c_phone char(15) not null, \
            c_acctbal numeric(15,2) not null, c_mktsegment char(10) not null, \
            c_comment varchar(117) not null)",
        placement: "create_distributed_table('customer', 'c_custkey', colocate_with => 'none')",
        rows: |scale| written(CustomerGenerator::new(scale, 1, 1).iter()),
        count: |scale| CustomerGenerator::calculate_row_count(scale, 1, 1),
    },
    Table {
        name: "supplier",
        definition: "create table supplier (s_suppkey bigint primary key, s_name char(25) not null, \
            s_address varchar(40) not null, s_nationkey integer not null, \
            s_phone char(15) not null, s_acctbal numeric(15,2) not null, \
            s_comment varchar(101) not null)",
        placement: "create_distributed_table('supplier', 's_suppkey', colocate_with => 'none')",
        rows: |scale| written(SupplierGenerator::new(scale, 1, 1).iter()),
        count: |scale| SupplierGenerator::calculate_row_count(scale, 1, 1),
    },
    Table {
        name: "nation",
        definition: "create table nation (n_nationkey integer primary key, n_name char(25) not null, \
            n_regionkey integer not null, n_comment varchar(152))",
        placement: "create_reference_table('nation')",
        rows: |scale| written(NationGenerator::new(scale, 1, 1).iter()),
        count: |_| 25,
    },
    Table {
        name: "region",
        definition: "create table region (r_regionkey integer primary key, \
            r_name char(25) not null, r_comment varchar(152))",
        placement: "create_reference_table('region')",
        rows: |scale| written(RegionGenerator::new(scale, 1, 1).iter()),
        count: |_| 5,
    },
];

fn written<T: Display>(rows: impl Iterator<Item = T> + Send + 'static) -> Rows {
    Box::new(rows.map(|row| row.to_string()))
}

/// True at small scales with certain numbers of suppliers, such as 120. A part has four, which the
/// specification (section 4.2.3, PS_SUPPKEY) draws without a look at the ones it has drawn.
pub fn supplies_twice(scale: f64) -> bool {
    let suppliers = SupplierGenerator::calculate_row_count(scale, 1, 1);
    let parts = PartGenerator::calculate_row_count(scale, 1, 1);
    if suppliers < 1 {
        return true;
    }
    let rounds = 0..=(parts - 1) / suppliers;
    rounds
        .map(|round| suppliers / 4 + round)
        .any(|step| (1..4).any(|nth| nth * step % suppliers == 0))
}
