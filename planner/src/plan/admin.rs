//! The functions that the proxy answers itself.

/// A function the proxy answers itself. The result is one row of one column named like the
/// function.
#[derive(Debug, Clone, PartialEq)]
pub struct AdminCall {
    /// Which, with its arguments.
    pub function: AdminFunction,
    /// The result column's name.
    pub column: String,
}

/// A constant or parameter given to an [`AdminFunction`].
#[derive(Debug, Clone, PartialEq)]
pub enum Argument {
    /// Given in the text. `None` is NULL.
    Text(Option<String>),
    /// `$n`, 0-based.
    Parameter(usize),
}

/// The administrative functions.
#[derive(Debug, Clone, PartialEq)]
pub enum AdminFunction {
    /// `create_distributed_table(table, column [, 'hash' | 'range' | 'directory']
    /// [, colocate_with => other])`
    CreateDistributedTable {
        /// The table's name as given.
        table: Argument,
        /// The shard key.
        column: Argument,
        /// How the key's values say where rows are.
        distribution_type: Option<Argument>,
        /// Another distributed table, `default` or `none`.
        colocate_with: Option<Argument>,
    },
    /// `create_reference_table(table)`
    CreateReferenceTable {
        /// The table's name as given.
        table: Argument,
    },
    /// `undistribute_table(table)`
    UndistributeTable {
        /// The table's name as given.
        table: Argument,
    },
    /// `automator67.split_range(table, value [, shard])`
    SplitRange {
        /// The table's name as given.
        table: Argument,
        /// The first value of the new range.
        value: Argument,
        /// The shard of the new range.
        shard: Option<Argument>,
    },
    /// `automator67.place(table, value, shard)`
    Place {
        /// The table's name as given.
        table: Argument,
        /// A value of its key.
        value: Argument,
        /// The shard it shall be on.
        shard: Argument,
    },
    /// `automator67.distribute_schema(schema [, shard])`
    DistributeSchema {
        /// The schema.
        schema: Argument,
        /// The shard of its tables.
        shard: Option<Argument>,
    },
    /// `automator67.undistribute_schema(schema)`
    UndistributeSchema {
        /// The schema.
        schema: Argument,
    },
    /// `automator67.add_shard(name, url)`
    AddShard {
        /// The new shard's name.
        name: Argument,
        /// A libpq URL.
        url: Argument,
    },
    /// `automator67.create_unique_index(table, column [, name])`
    CreateUniqueIndex {
        /// The table's name as given.
        table: Argument,
        /// The column.
        column: Argument,
        /// The index's name; without it, as the server would name the constraint.
        name: Option<Argument>,
    },
    /// `automator67.drop_unique_index(name)`
    DropUniqueIndex {
        /// The index's name as given.
        name: Argument,
    },
    /// `automator67.declare_safe(function)`: its body was checked by a person; it may run in
    /// statements over distributed tables and in their triggers.
    DeclareSafe {
        /// The function's name as given.
        function: Argument,
    },
}
