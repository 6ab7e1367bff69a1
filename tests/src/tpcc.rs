//! The nine tables of TPC-C, few rows of them, its five transactions, and its consistency
//! conditions (TPC Benchmark C, Standard Specification, Revision 5.11, clauses 1 to 3).
//!
//! All but `item`, a reference table, are distributed by warehouse and colocated: a New-Order or
//! Payment that concerns a second warehouse may write on two shards. Rows are locked in one order
//! in every transaction: warehouse, district, customer, order, stock by warehouse and item. So no
//! two of them can wait for each other in a circle.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{
    generate::random::Random,
    wire::{Connection, Server},
};

/// Districts of a warehouse.
pub const DISTRICTS: i64 = 10;
/// Customers of a district; as many orders are there at the start.
pub const CUSTOMERS: i64 = 30;
/// Items, and stock rows of a warehouse.
pub const ITEMS: i64 = 200;
/// Of the first orders of a district, those that are not delivered yet start here.
const FIRST_NEW: i64 = 22;
/// How often a transaction is tried again after 40001 or 40P01.
const MOST_RETRIES: usize = 20;

const CREATE: [&str; 10] = [
    "create table item (i_id int primary key, i_name text not null, i_price numeric(5, 2) not null)",
    "create table warehouse (w_id int primary key, w_name text not null, w_tax numeric(4, 4) not null, \
     w_ytd numeric(12, 2) not null)",
    "create table district (d_w_id int, d_id int, d_tax numeric(4, 4) not null, \
     d_ytd numeric(12, 2) not null, d_next_o_id int not null, primary key (d_w_id, d_id), \
     foreign key (d_w_id) references warehouse)",
    "create table customer (c_w_id int, c_d_id int, c_id int, c_last text not null, \
     c_credit char(2) not null, c_discount numeric(4, 4) not null, c_balance numeric(12, 2) not null, \
     c_ytd_payment numeric(12, 2) not null, c_payment_cnt int not null, c_delivery_cnt int not null, \
     c_data text not null, primary key (c_w_id, c_d_id, c_id), \
     foreign key (c_w_id, c_d_id) references district)",
    "create table history (h_w_id int not null, h_d_id int not null, h_c_w_id int not null, \
     h_c_d_id int not null, h_c_id int not null, h_date timestamptz not null, \
     h_amount numeric(6, 2) not null, foreign key (h_w_id, h_d_id) references district)",
    "create table orders (o_w_id int, o_d_id int, o_id int, o_c_id int not null, \
     o_entry_d timestamptz not null, o_carrier_id int, o_ol_cnt int not null, \
     o_all_local boolean not null, primary key (o_w_id, o_d_id, o_id), \
     foreign key (o_w_id, o_d_id, o_c_id) references customer)",
    "create index on orders (o_w_id, o_d_id, o_c_id, o_id)",
    "create table new_order (no_w_id int, no_d_id int, no_o_id int, \
     primary key (no_w_id, no_d_id, no_o_id), foreign key (no_w_id, no_d_id, no_o_id) references orders)",
    "create table order_line (ol_w_id int, ol_d_id int, ol_o_id int, ol_number int, \
     ol_i_id int not null, ol_supply_w_id int not null, ol_delivery_d timestamptz, \
     ol_quantity int not null, ol_amount numeric(6, 2) not null, \
     primary key (ol_w_id, ol_d_id, ol_o_id, ol_number), \
     foreign key (ol_w_id, ol_d_id, ol_o_id) references orders)",
    "create table stock (s_w_id int, s_i_id int, s_quantity int not null, s_ytd int not null, \
     s_order_cnt int not null, s_remote_cnt int not null, primary key (s_w_id, s_i_id), \
     foreign key (s_w_id) references warehouse)",
];

const PLACE: [&str; 9] = [
    "select create_reference_table('item')",
    "select create_distributed_table('warehouse', 'w_id')",
    "select create_distributed_table('district', 'd_w_id', colocate_with => 'warehouse')",
    "select create_distributed_table('customer', 'c_w_id', colocate_with => 'warehouse')",
    "select create_distributed_table('history', 'h_w_id', colocate_with => 'warehouse')",
    "select create_distributed_table('orders', 'o_w_id', colocate_with => 'warehouse')",
    "select create_distributed_table('new_order', 'no_w_id', colocate_with => 'warehouse')",
    "select create_distributed_table('order_line', 'ol_w_id', colocate_with => 'warehouse')",
    "select create_distributed_table('stock', 's_w_id', colocate_with => 'warehouse')",
];

/// Makes the tables and fills them for `warehouses` (clause 4.3, on a smaller scale).
pub fn load(connection: &mut Connection, warehouses: i64) -> Result<()> {
    for text in CREATE.iter().chain(&PLACE) {
        connection.execute(text)?;
    }
    let districts =
        format!("generate_series(1, {warehouses}) w, generate_series(1, {DISTRICTS}) d");
    let customers = format!("{districts}, generate_series(1, {CUSTOMERS}) c");
    let fills = [
        format!(
            "insert into item select g, 'item ' || g, 1 + g % 99 from generate_series(1, {ITEMS}) g"
        ),
        // Each customer has paid 10 (clause 4.3.3.1), all of which is in the sums.
        format!(
            "insert into warehouse select w, 'w' || w, 0.1, 10 * {DISTRICTS} * {CUSTOMERS} \
             from generate_series(1, {warehouses}) w"
        ),
        format!(
            "insert into district select w, d, 0.05, 10 * {CUSTOMERS}, {CUSTOMERS} + 1 from {districts}"
        ),
        format!(
            "insert into customer select w, d, c, 'NAME' || c % 10, \
             case when c % 10 = 0 then 'BC' else 'GC' end, 0.1, -10, 10, 1, 0, '' from {customers}"
        ),
        format!("insert into history select w, d, w, d, c, now(), 10 from {customers}"),
        format!(
            "insert into orders select w, d, c, {CUSTOMERS} + 1 - c, now(), \
             case when c < {FIRST_NEW} then c % 10 + 1 end, 5 + c % 11, true from {customers}"
        ),
        format!("insert into new_order select w, d, c from {customers} where c >= {FIRST_NEW}"),
        // Delivered lines cost nothing: no balance has them.
        format!(
            "insert into order_line select w, d, c, n, (w * 7 + d * 3 + c * 11 + n) % {ITEMS} + 1, w, \
             case when c < {FIRST_NEW} then now() end, 5, case when c < {FIRST_NEW} then 0 else n end \
             from {customers}, generate_series(1, 15) n where n <= 5 + c % 11"
        ),
        format!(
            "insert into stock select w, i, 10 + i % 91, 0, 0, 0 \
             from generate_series(1, {warehouses}) w, generate_series(1, {ITEMS}) i"
        ),
    ];
    fills
        .iter()
        .try_for_each(|text| connection.execute(text).map(drop))
}

/// What a run came to.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    /// Transactions that committed, in the order New-Order, Payment, Order-Status, Delivery,
    /// Stock-Level.
    pub committed: [usize; 5],
    /// New-Orders with an item that does not exist: 1 %, rolled back (clause 2.4.1.4).
    pub rolled_back: usize,
    /// Committed New-Orders and Payments that concern a second warehouse.
    pub remote: usize,
    /// Transactions that began again after 40001.
    pub conflicts: usize,
    /// Transactions that began again after 40P01.
    pub deadlocks: usize,
    /// How long each committed New-Order took, retries included.
    pub waits: Vec<Duration>,
}

impl Counts {
    /// Adds those of another client.
    pub fn add(&mut self, other: Counts) {
        for (sum, count) in self.committed.iter_mut().zip(other.committed) {
            *sum += count;
        }
        self.rolled_back += other.rolled_back;
        self.remote += other.remote;
        self.conflicts += other.conflicts;
        self.deadlocks += other.deadlocks;
        self.waits.extend(other.waits);
    }

    /// All that committed.
    pub fn sum(&self) -> usize {
        self.committed.iter().sum()
    }
}

/// One terminal: runs the mix of transactions of clause 5.2.3 until `end`.
pub fn terminal(
    server: &Server,
    warehouses: i64,
    seed: u64,
    client: u64,
    end: Instant,
) -> Result<Counts> {
    let mut random = Random::new(seed, client);
    let home = i64::try_from(client)? % warehouses + 1;
    let mut connection = Connection::open(server)?;
    let mut counts = Counts::default();
    while Instant::now() < end {
        let work = Work::draw(&mut random, home, warehouses);
        work.persist(&mut connection, &mut counts)
            .with_context(|| format!("client {client}: {work:?}"))?;
        connection.notices.clear();
    }
    connection.terminate()?;
    Ok(counts)
}

/// One transaction with all its inputs: trying it again does the same.
#[derive(Debug)]
enum Work {
    NewOrder {
        district: (i64, i64),
        customer: i64,
        /// Warehouse, item, quantity; item 0 does not exist.
        lines: Vec<(i64, i64, i64)>,
    },
    Payment {
        district: (i64, i64),
        customer: (i64, i64),
        who: Who,
        cents: i64,
    },
    OrderStatus {
        district: (i64, i64),
        who: Who,
    },
    Delivery {
        warehouse: i64,
        carrier: i64,
    },
    StockLevel {
        district: (i64, i64),
        threshold: i64,
    },
}

/// How a customer is found.
#[derive(Debug)]
enum Who {
    Number(i64),
    /// The middle one of those with that name (clause 2.5.2.2).
    Name(i64),
}

impl Who {
    fn draw(random: &mut Random) -> Who {
        match random.chance(60) {
            true => Who::Name(random.between(0, 9)),
            false => Who::Number(random.between(1, CUSTOMERS)),
        }
    }

    /// Its number, as a subquery that needs no lock: names never change.
    fn find(&self, connection: &mut Connection, (warehouse, district): (i64, i64)) -> Result<i64> {
        match self {
            Who::Number(number) => Ok(*number),
            Who::Name(name) => {
                let rows = connection.rows(&format!(
                    "select c_id from customer where c_w_id = {warehouse} and c_d_id = {district} \
                     and c_last = 'NAME{name}' order by c_id"
                ))?;
                let middle = rows.get(rows.len().div_ceil(2).saturating_sub(1));
                let number = middle.and_then(|row| row[0].as_deref());
                Ok(number.context("no customer of that name")?.parse()?)
            }
        }
    }
}

impl Work {
    fn draw(random: &mut Random, home: i64, warehouses: i64) -> Work {
        let district = (home, random.between(1, DISTRICTS));
        match random.below(100) {
            0..=44 => Work::draw_new_order(random, district, warehouses),
            45..=87 => {
                let customer = match random.chance(15) {
                    true => (
                        other(random, home, warehouses),
                        random.between(1, DISTRICTS),
                    ),
                    false => district,
                };
                Work::Payment {
                    district,
                    customer,
                    who: Who::draw(random),
                    cents: random.between(100, 500_000),
                }
            }
            88..=91 => Work::OrderStatus {
                district,
                who: Who::draw(random),
            },
            92..=95 => Work::Delivery {
                warehouse: home,
                carrier: random.between(1, 10),
            },
            _ => Work::StockLevel {
                district,
                threshold: random.between(10, 20),
            },
        }
    }

    /// One of ten gets a part of its lines from another warehouse.
    fn draw_new_order(random: &mut Random, district: (i64, i64), warehouses: i64) -> Work {
        let remote = random.chance(10);
        let mut lines: Vec<(i64, i64, i64)> = Vec::new();
        for _ in 0..random.between(5, 15) {
            let warehouse = match remote && random.chance(50) {
                true => other(random, district.0, warehouses),
                false => district.0,
            };
            let item = random.between(1, ITEMS);
            if lines
                .iter()
                .all(|line| (line.0, line.1) != (warehouse, item))
            {
                lines.push((warehouse, item, random.between(1, 10)));
            }
        }
        if random.chance(1)
            && let Some(last) = lines.last_mut()
        {
            last.1 = 0;
        }
        Work::NewOrder {
            district,
            customer: random.between(1, CUSTOMERS),
            lines,
        }
    }

    /// Tries until it commits.
    fn persist(&self, connection: &mut Connection, counts: &mut Counts) -> Result<()> {
        let start = Instant::now();
        for _ in 0..MOST_RETRIES {
            match self.run(connection) {
                Ok(true) => {
                    counts.committed[self.place()] += 1;
                    counts.remote += usize::from(self.is_remote());
                    if self.place() == 0 {
                        counts.waits.push(start.elapsed());
                    }
                    return Ok(());
                }
                Ok(false) => {
                    counts.rolled_back += 1;
                    return Ok(());
                }
                Err(error) => {
                    let text = format!("{error:#}");
                    match () {
                        () if text.contains(" 40001 ") => counts.conflicts += 1,
                        () if text.contains(" 40P01 ") => {
                            eprintln!("a victim: {self:?}: {text}");
                            counts.deadlocks += 1;
                        }
                        () => return Err(error),
                    }
                    connection.execute("rollback")?;
                }
            }
        }
        bail!("tried {MOST_RETRIES} times in vain")
    }

    fn place(&self) -> usize {
        match self {
            Work::NewOrder { .. } => 0,
            Work::Payment { .. } => 1,
            Work::OrderStatus { .. } => 2,
            Work::Delivery { .. } => 3,
            Work::StockLevel { .. } => 4,
        }
    }

    fn is_remote(&self) -> bool {
        match self {
            Work::NewOrder {
                district, lines, ..
            } => lines.iter().any(|line| line.0 != district.0),
            Work::Payment {
                district, customer, ..
            } => district.0 != customer.0,
            _ => false,
        }
    }

    /// One try; whether it committed.
    fn run(&self, connection: &mut Connection) -> Result<bool> {
        connection.execute("begin")?;
        let done = match self {
            Work::NewOrder {
                district,
                customer,
                lines,
            } => new_order(connection, *district, *customer, lines)?,
            Work::Payment {
                district,
                customer,
                who,
                cents,
            } => payment(connection, *district, *customer, who, *cents)?,
            Work::OrderStatus { district, who } => order_status(connection, *district, who)?,
            Work::Delivery { warehouse, carrier } => delivery(connection, *warehouse, *carrier)?,
            Work::StockLevel {
                district,
                threshold,
            } => stock_level(connection, *district, *threshold)?,
        };
        match done {
            true => connection.execute("commit")?,
            false => connection.execute("rollback")?,
        };
        Ok(done)
    }
}

fn other(random: &mut Random, home: i64, warehouses: i64) -> i64 {
    match warehouses {
        1 => home,
        _ => (home + random.between(0, warehouses - 2)) % warehouses + 1,
    }
}

fn value(connection: &mut Connection, text: &str) -> Result<String> {
    let value = connection.execute(text)?;
    value.with_context(|| format!("{text}: no row"))
}

/// Clause 2.4.2.
fn new_order(
    connection: &mut Connection,
    (warehouse, district): (i64, i64),
    customer: i64,
    lines: &[(i64, i64, i64)],
) -> Result<bool> {
    value(
        connection,
        &format!("select w_tax from warehouse where w_id = {warehouse}"),
    )?;
    let order = value(
        connection,
        &format!(
            "update district set d_next_o_id = d_next_o_id + 1 where d_w_id = {warehouse} \
             and d_id = {district} returning d_next_o_id - 1"
        ),
    )?;
    value(
        connection,
        &format!(
            "select c_discount from customer where c_w_id = {warehouse} and c_d_id = {district} \
             and c_id = {customer}"
        ),
    )?;
    let local = lines.iter().all(|line| line.0 == warehouse);
    let count = lines.len();
    connection.execute(&format!(
        "insert into orders values ({warehouse}, {district}, {order}, {customer}, now(), null, {count}, {local})"
    ))?;
    connection.execute(&format!(
        "insert into new_order values ({warehouse}, {district}, {order})"
    ))?;
    let mut sorted: Vec<_> = lines.iter().collect();
    sorted.sort();
    let mut rows = Vec::new();
    for (number, (supplier, item, quantity)) in sorted.into_iter().enumerate() {
        let price = connection.execute(&format!("select i_price from item where i_id = {item}"))?;
        let Some(price) = price else {
            return Ok(false);
        };
        let remote = i64::from(*supplier != warehouse);
        value(
            connection,
            &format!(
                "update stock set s_quantity = s_quantity - {quantity} \
                 + case when s_quantity >= {quantity} + 10 then 0 else 91 end, \
                 s_ytd = s_ytd + {quantity}, s_order_cnt = s_order_cnt + 1, \
                 s_remote_cnt = s_remote_cnt + {remote} \
                 where s_w_id = {supplier} and s_i_id = {item} returning s_quantity"
            ),
        )?;
        let number = number + 1;
        rows.push(format!(
            "({warehouse}, {district}, {order}, {number}, {item}, {supplier}, null, {quantity}, {quantity} * {price})"
        ));
    }
    connection.execute(&format!(
        "insert into order_line values {}",
        rows.join(", ")
    ))?;
    Ok(true)
}

/// Clause 2.5.2.
fn payment(
    connection: &mut Connection,
    (warehouse, district): (i64, i64),
    home: (i64, i64),
    who: &Who,
    cents: i64,
) -> Result<bool> {
    let customer = who.find(connection, home)?;
    let amount = format!("{}.{:02}", cents / 100, cents % 100);
    value(
        connection,
        &format!(
            "update warehouse set w_ytd = w_ytd + {amount} where w_id = {warehouse} returning w_name"
        ),
    )?;
    value(
        connection,
        &format!(
            "update district set d_ytd = d_ytd + {amount} where d_w_id = {warehouse} \
             and d_id = {district} returning d_id"
        ),
    )?;
    value(
        connection,
        &format!(
            "update customer set c_balance = c_balance - {amount}, \
             c_ytd_payment = c_ytd_payment + {amount}, c_payment_cnt = c_payment_cnt + 1, \
             c_data = case c_credit when 'BC' then left('{customer} {district} {amount}|' || c_data, 500) \
             else c_data end \
             where c_w_id = {} and c_d_id = {} and c_id = {customer} returning c_balance",
            home.0, home.1
        ),
    )?;
    connection.execute(&format!(
        "insert into history values ({warehouse}, {district}, {}, {}, {customer}, now(), {amount})",
        home.0, home.1
    ))?;
    Ok(true)
}

/// Clause 2.6.2.
fn order_status(
    connection: &mut Connection,
    (warehouse, district): (i64, i64),
    who: &Who,
) -> Result<bool> {
    let customer = who.find(connection, (warehouse, district))?;
    let last = connection.rows(&format!(
        "select o_id, o_ol_cnt from orders where o_w_id = {warehouse} and o_d_id = {district} \
         and o_c_id = {customer} order by o_id desc limit 1"
    ))?;
    if let Some([Some(order), Some(count)]) = last.first().map(Vec::as_slice) {
        let lines = connection.rows(&format!(
            "select ol_i_id, ol_amount from order_line where ol_w_id = {warehouse} \
             and ol_d_id = {district} and ol_o_id = {order}"
        ))?;
        anyhow::ensure!(
            lines.len().to_string() == *count,
            "order {order} of {warehouse}/{district} has {} lines, not {count}",
            lines.len()
        );
    }
    Ok(true)
}

/// Clause 2.7.4: the oldest new order of each district. All districts are locked before the first
/// customer; that also keeps other deliveries away.
fn delivery(connection: &mut Connection, warehouse: i64, carrier: i64) -> Result<bool> {
    connection.execute(&format!(
        "select d_id from district where d_w_id = {warehouse} order by d_id for no key update"
    ))?;
    for district in 1..=DISTRICTS {
        let oldest = connection.execute(&format!(
            "select min(no_o_id) from new_order where no_w_id = {warehouse} and no_d_id = {district}"
        ))?;
        let Some(order) = oldest else {
            continue;
        };
        connection.execute(&format!(
            "delete from new_order where no_w_id = {warehouse} and no_d_id = {district} and no_o_id = {order}"
        ))?;
        let customer = value(
            connection,
            &format!(
                "select o_c_id from orders where o_w_id = {warehouse} and o_d_id = {district} \
                 and o_id = {order}"
            ),
        )?;
        connection.execute(&format!(
            "update customer set c_delivery_cnt = c_delivery_cnt + 1, c_balance = c_balance + \
             (select sum(ol_amount) from order_line where ol_w_id = {warehouse} \
             and ol_d_id = {district} and ol_o_id = {order}) \
             where c_w_id = {warehouse} and c_d_id = {district} and c_id = {customer}"
        ))?;
        connection.execute(&format!(
            "update orders set o_carrier_id = {carrier} where o_w_id = {warehouse} \
             and o_d_id = {district} and o_id = {order}"
        ))?;
        connection.execute(&format!(
            "update order_line set ol_delivery_d = now() where ol_w_id = {warehouse} \
             and ol_d_id = {district} and ol_o_id = {order}"
        ))?;
    }
    Ok(true)
}

/// Clause 2.8.2.
fn stock_level(
    connection: &mut Connection,
    (warehouse, district): (i64, i64),
    threshold: i64,
) -> Result<bool> {
    value(
        connection,
        &format!(
            "select count(distinct s_i_id) from district, order_line, stock \
             where d_w_id = {warehouse} and d_id = {district} and ol_w_id = d_w_id and ol_d_id = d_id \
             and ol_o_id >= d_next_o_id - 20 and ol_o_id < d_next_o_id \
             and s_w_id = d_w_id and s_i_id = ol_i_id and s_quantity < {threshold}"
        ),
    )?;
    Ok(true)
}

/// Conditions that hold between transactions; each query finds the rows that break one.
pub const CONDITIONS: [(&str, &str); 12] = [
    (
        "3.3.2.1: w_ytd = sum(d_ytd)",
        "select w_id, w_ytd, s from warehouse join \
         (select d_w_id, sum(d_ytd) as s from district group by d_w_id) d on d_w_id = w_id where w_ytd <> s",
    ),
    (
        "3.3.2.2: d_next_o_id - 1 = max(o_id)",
        "select d_w_id, d_id, d_next_o_id, m from district left join \
         (select o_w_id, o_d_id, max(o_id) as m from orders group by o_w_id, o_d_id) o \
         on o_w_id = d_w_id and o_d_id = d_id where d_next_o_id - 1 is distinct from m",
    ),
    (
        "3.3.2.2: no new order is newer than d_next_o_id - 1",
        "select d_w_id, d_id, d_next_o_id, m from district join \
         (select no_w_id, no_d_id, max(no_o_id) as m from new_order group by no_w_id, no_d_id) o \
         on no_w_id = d_w_id and no_d_id = d_id where m > d_next_o_id - 1",
    ),
    (
        "3.3.2.3: new orders of a district have no gaps",
        "select no_w_id, no_d_id from new_order group by no_w_id, no_d_id \
         having max(no_o_id) - min(no_o_id) + 1 <> count(*)",
    ),
    (
        "3.3.2.4: sum(o_ol_cnt) = count of order lines",
        "select o_w_id, o_d_id, s, n from \
         (select o_w_id, o_d_id, sum(o_ol_cnt) as s from orders group by o_w_id, o_d_id) o full join \
         (select ol_w_id, ol_d_id, count(*) as n from order_line group by ol_w_id, ol_d_id) l \
         on o_w_id = ol_w_id and o_d_id = ol_d_id where s is distinct from n",
    ),
    (
        "3.3.2.5: an order has no carrier while it is new",
        "select o_w_id, o_d_id, o_id from orders left join new_order \
         on no_w_id = o_w_id and no_d_id = o_d_id and no_o_id = o_id \
         where (o_carrier_id is null) <> (no_o_id is not null)",
    ),
    (
        "3.3.2.6: each order has o_ol_cnt lines",
        "select o_w_id, o_d_id, o_id from orders left join order_line \
         on ol_w_id = o_w_id and ol_d_id = o_d_id and ol_o_id = o_id \
         group by o_w_id, o_d_id, o_id, o_ol_cnt having count(ol_number) <> o_ol_cnt",
    ),
    (
        "3.3.2.7: lines are delivered with their order",
        "select o_w_id, o_d_id, o_id from orders join order_line \
         on ol_w_id = o_w_id and ol_d_id = o_d_id and ol_o_id = o_id \
         where (o_carrier_id is null) <> (ol_delivery_d is null)",
    ),
    (
        "3.3.2.8: w_ytd = sum(h_amount)",
        "select w_id, w_ytd, s from warehouse join \
         (select h_w_id, sum(h_amount) as s from history group by h_w_id) h on h_w_id = w_id where w_ytd <> s",
    ),
    (
        "3.3.2.9: d_ytd = sum(h_amount)",
        "select d_w_id, d_id, d_ytd, s from district join \
         (select h_w_id, h_d_id, sum(h_amount) as s from history group by h_w_id, h_d_id) h \
         on h_w_id = d_w_id and h_d_id = d_id where d_ytd <> s",
    ),
    (
        "what all customers paid is what all warehouses got",
        "select c, h from (select sum(c_ytd_payment) as c from customer) c, \
         (select sum(h_amount) as h from history) h where c <> h",
    ),
    (
        "stock that went out is what all orders have",
        "select s, o from (select s_w_id, sum(s_ytd) as s, sum(s_order_cnt) as n from stock group by s_w_id) a \
         join (select ol_supply_w_id, sum(ol_quantity) as o, count(*) as m from order_line \
         where ol_o_id > 30 group by ol_supply_w_id) b on s_w_id = ol_supply_w_id where s <> o or n <> m",
    ),
];

/// The first rows that break a condition, each with its name.
pub fn violations(connection: &mut Connection) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (name, text) in CONDITIONS {
        let rows = connection.rows(text)?;
        for row in rows.iter().take(3) {
            found.push(format!("{name}: {row:?}"));
        }
    }
    let balance = "select c_w_id, c_d_id, c_id, c_balance from customer c where c_balance <> \
         (select coalesce(sum(ol_amount), 0) from orders join order_line \
         on ol_w_id = o_w_id and ol_d_id = o_d_id and ol_o_id = o_id \
         where o_w_id = c.c_w_id and o_d_id = c.c_d_id and o_c_id = c.c_id and ol_delivery_d is not null) \
         - c.c_ytd_payment";
    for row in connection.rows(balance)?.iter().take(3) {
        found.push(format!("3.3.2.12: c_balance: {row:?}"));
    }
    Ok(found)
}
