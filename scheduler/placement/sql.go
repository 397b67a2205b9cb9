package placement

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

// Migrations create the tables of [SQL], on MySQL, MariaDB and SQLite. A component passes them to [db.Migrate] and [db.Check],
// before its own.
var Migrations = db.Embedded("placement", migrations)

//go:embed migrations/*.sql
var migrations embed.FS

// SQL is a [Store] in a component's database, with the tables of [Migrations].
type SQL struct{ db *sqlx.DB }

// NewSQL returns a Store in the database d. Package db must have opened d. The caller still owns d.
func NewSQL(d *sqlx.DB) *SQL { return &SQL{d} }

// forUpdate ends a SELECT whose rows are locked until the transaction ends.
const forUpdate = " FOR UPDATE"

// selection is a SELECT of all rows of a table, or of the rows whose column key has one of several values.
type selection struct{ query, key, tail string }

var (
	providerRows   = selection{"SELECT " + db.Columns[providerRow]() + " FROM placement_providers", "id", " ORDER BY id"}
	inventoryRows  = selection{"SELECT " + db.Columns[inventoryRow]() + " FROM placement_inventories", "provider", " ORDER BY provider, class"}
	consumerRows   = selection{"SELECT " + db.Columns[consumerRow]() + " FROM placement_consumers", "id", " ORDER BY id"}
	consumerCounts = selection{"SELECT host, group_id, COUNT(*) AS n FROM placement_consumers", "host", " GROUP BY group_id, host"}
	allocationRows = selection{"SELECT " + db.Columns[allocationRow]() + " FROM placement_allocations", "consumer", " ORDER BY consumer, provider, class"}
)

// read reads rows into a slice: all rows if keys is empty. The parameter lock is forUpdate or empty.
func (s selection) read(ctx context.Context, q sqlx.QueryerContext, rows any, lock string, keys []string) error {
	query, args := s.query, []any(nil)
	if len(keys) > 0 {
		var err error
		if query, args, err = sqlx.In(s.query+" WHERE "+s.key+" IN (?)", keys); err != nil {
			return err
		}
	}
	return db.Error(sqlx.SelectContext(ctx, q, rows, query+s.tail+lock, args...))
}

// providerRow is a row of the table of providers.
type providerRow struct {
	ID         string            `db:"id"`
	Generation int64             `db:"generation"`
	Data       db.JSON[Provider] `db:"data"`
}

type inventoryRow struct {
	Provider   string  `db:"provider"`
	Class      string  `db:"class"`
	Total      int64   `db:"total"`
	Reserved   int64   `db:"reserved"`
	Ratio      float64 `db:"ratio"`
	Min        int64   `db:"min_unit"`
	Max        int64   `db:"max_unit"`
	Step       int64   `db:"step_size"`
	Capacity   int64   `db:"capacity"`
	Used       int64   `db:"used"`
	Generation int64   `db:"generation"`
}

func (r *inventoryRow) inventory() Inventory {
	return Inventory{r.Total, r.Reserved, r.Ratio, r.Min, r.Max, r.Step, r.Used}
}

// readProviders returns providers by ID: all providers if ids is empty. Their aggregates have only names, and their
// consumers are not counted.
func readProviders(ctx context.Context, q sqlx.QueryerContext, lock string, ids ...string) (map[string]*Provider, error) {
	var rows []providerRow
	if err := providerRows.read(ctx, q, &rows, lock, ids); err != nil {
		return nil, err
	}
	out := make(map[string]*Provider, len(rows))
	for i := range rows {
		p := &rows[i].Data.V
		p.ID, p.Generation, p.Inventories = rows[i].ID, rows[i].Generation, map[string]Inventory{}
		out[p.ID] = p
	}
	var inventories []inventoryRow
	if err := inventoryRows.read(ctx, q, &inventories, lock, ids); err != nil {
		return nil, err
	}
	for i := range inventories {
		if p := out[inventories[i].Provider]; p != nil {
			p.Inventories[inventories[i].Class] = inventories[i].inventory()
		}
	}
	return out, nil
}

// Put implements [Store].
func (s *SQL) Put(ctx context.Context, p *Provider) (out *Provider, err error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	err = retryOn(ctx, errLost, func() error {
		err := db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) (err error) {
			out, err = putProvider(ctx, tx, p)
			return err
		})
		switch {
		case fault.CodeOf(err) != fault.Conflict || errors.Is(err, ErrChanged):
			return err
		case p.Generation == Any: // another process added the provider first
			return fmt.Errorf("provider %s: %w: %w", p.ID, errLost, err)
		}
		return fmt.Errorf("provider %s, generation %d: another process added the provider first: %w", p.ID, p.Generation, ErrChanged)
	})
	if err != nil {
		return nil, err
	}
	list, err := s.Providers(ctx, p.ID)
	if err != nil || len(list) == 0 {
		return out, err
	}
	return list[0], nil
}

// putProvider does the work of Put in a transaction.
func putProvider(ctx context.Context, tx *sqlx.Tx, p *Provider) (*Provider, error) {
	known, err := readProviders(ctx, tx, forUpdate, p.ID)
	if err != nil {
		return nil, err
	}
	have := known[p.ID]
	next, err := p.toStored(have)
	if err != nil {
		return nil, err
	}
	names, err := readAggregates(ctx, tx)
	if err != nil {
		return nil, err
	}
	for _, a := range next.Aggregates {
		if names[a.Name] == nil {
			return nil, fault.New(fault.NotFound, "provider %s: aggregate %s does not exist", p.ID, a.Name)
		}
	}
	return next, writeProvider(ctx, tx, next, have)
}

// writeProvider writes the provider p. The parameter have is the stored provider that p replaces, or nil if p is new.
func writeProvider(ctx context.Context, tx *sqlx.Tx, p, have *Provider) error {
	data := *p
	data.ID, data.Generation, data.Inventories = "", 0, nil // these fields have columns of their own
	var err error
	if have == nil {
		have = &Provider{}
		_, err = db.Exec(ctx, tx, `INSERT INTO placement_providers (id, generation, data) VALUES (?, ?, ?)`, p.ID, p.Generation, db.JSONOf(data))
	} else {
		_, err = db.Exec(ctx, tx, `UPDATE placement_providers SET generation = ?, data = ? WHERE id = ?`, p.Generation, db.JSONOf(data), p.ID)
	}
	if err != nil || have.Generation == p.Generation { // the inventories have not changed
		return err
	}
	return writeInventories(ctx, tx, p, have)
}

// writeInventories writes the inventories of p. The parameter have is the stored provider, whose inventories are replaced. The rows keep
// their used amounts.
func writeInventories(ctx context.Context, tx *sqlx.Tx, p, have *Provider) error {
	for _, class := range slices.Sorted(maps.Keys(have.Inventories)) {
		if _, ok := p.Inventories[class]; ok {
			continue
		}
		if _, err := db.Exec(ctx, tx, `DELETE FROM placement_inventories WHERE provider = ? AND class = ?`, p.ID, class); err != nil {
			return err
		}
	}
	for _, class := range slices.Sorted(maps.Keys(p.Inventories)) {
		i := p.Inventories[class]
		args := []any{i.Total, i.Reserved, i.Ratio, i.Min, i.Max, i.Step, i.Capacity(), p.Generation, p.ID, class}
		query := `UPDATE placement_inventories SET total = ?, reserved = ?, ratio = ?, min_unit = ?, max_unit = ?, step_size = ?,
			capacity = ?, generation = ? WHERE provider = ? AND class = ?`
		if _, ok := have.Inventories[class]; !ok {
			query = `INSERT INTO placement_inventories (total, reserved, ratio, min_unit, max_unit, step_size, capacity, generation, provider, class, used)
				VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)`
		}
		if _, err := db.Exec(ctx, tx, query, args...); err != nil {
			return err
		}
	}
	return nil
}

// Remove implements [Store].
func (s *SQL) Remove(ctx context.Context, id string) error {
	return db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) error {
		known, err := readProviders(ctx, tx, forUpdate, id)
		if err != nil || known[id] == nil {
			return err
		}
		for _, class := range slices.Sorted(maps.Keys(known[id].Inventories)) {
			if n := known[id].Inventories[class].Used; n > 0 {
				return fault.New(fault.Precondition, "provider %s cannot be removed, %[3]d %[2]s are used", id, class, n)
			}
		}
		if _, err := db.Exec(ctx, tx, `DELETE FROM placement_inventories WHERE provider = ?`, id); err != nil {
			return err
		}
		_, err = db.Exec(ctx, tx, `DELETE FROM placement_providers WHERE id = ?`, id)
		return err
	})
}

// Providers implements [Store].
func (s *SQL) Providers(ctx context.Context, ids ...string) ([]*Provider, error) {
	known, err := readProviders(ctx, s.db, "", ids...)
	if err != nil {
		return nil, err
	}
	names, err := readAggregates(ctx, s.db)
	if err != nil {
		return nil, err
	}
	var counts []struct {
		Host  string `db:"host"`
		Group string `db:"group_id"`
		N     int64  `db:"n"`
	}
	if err := consumerCounts.read(ctx, s.db, &counts, "", ids); err != nil {
		return nil, err
	}
	for _, c := range counts {
		if p := known[c.Host]; p != nil {
			p.addConsumers(c.Group, c.N)
		}
	}
	now := time.Now()
	out := make([]*Provider, 0, len(known))
	for _, id := range slices.Sorted(maps.Keys(known)) {
		p := known[id]
		p.At = now
		p.Aggregates = resolveAggregates(p.Aggregates, names)
		out = append(out, p)
	}
	return out, nil
}

// Generation returns the generation of a provider, or 0 if the provider does not exist. It reads only one row, so it is a
// cheap way to detect that a provider has changed since an earlier Put or Providers. It fails with Unavailable if the database
// cannot be reached.
func (s *SQL) Generation(ctx context.Context, id string) (generation int64, err error) {
	err = db.Error(s.db.GetContext(ctx, &generation, `SELECT generation FROM placement_providers WHERE id = ?`, id))
	if errors.Is(err, fault.NotFound) {
		return 0, nil
	}
	return generation, err
}

// resolveAggregates returns the aggregates with their metadata. It drops those that no longer exist.
func resolveAggregates(list []*Aggregate, names map[string]*Aggregate) (out []*Aggregate) {
	for _, a := range list {
		if known := names[a.Name]; known != nil {
			out = append(out, known)
		}
	}
	return out
}

// readAggregates returns all aggregates by name.
func readAggregates(ctx context.Context, q sqlx.QueryerContext) (map[string]*Aggregate, error) {
	var rows []struct {
		Name     string                     `db:"name"`
		Metadata db.JSON[map[string]string] `db:"metadata"`
	}
	if err := sqlx.SelectContext(ctx, q, &rows, `SELECT name, metadata FROM placement_aggregates`); err != nil {
		return nil, db.Error(err)
	}
	out := make(map[string]*Aggregate, len(rows))
	for _, r := range rows {
		out[r.Name] = &Aggregate{Name: r.Name, Metadata: r.Metadata.V}
	}
	return out, nil
}

// PutAggregate implements [Store].
func (s *SQL) PutAggregate(ctx context.Context, a Aggregate) error {
	if err := a.check(); err != nil {
		return err
	}
	data := db.JSONOf(a.Metadata)
	return db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) error {
		n, err := db.Exec(ctx, tx, `UPDATE placement_aggregates SET metadata = ? WHERE name = ?`, data, a.Name)
		if err == nil && n == 0 {
			_, err = db.Exec(ctx, tx, `INSERT INTO placement_aggregates (name, metadata) VALUES (?, ?)`, a.Name, data)
		}
		return err
	})
}

// RemoveAggregate implements [Store].
func (s *SQL) RemoveAggregate(ctx context.Context, name string) error {
	return db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) error {
		if _, err := db.Exec(ctx, tx, `DELETE FROM placement_aggregates WHERE name = ?`, name); err != nil {
			return err
		}
		known, err := readProviders(ctx, tx, forUpdate)
		if err != nil {
			return err
		}
		for _, id := range slices.Sorted(maps.Keys(known)) {
			p := known[id]
			if !slices.ContainsFunc(p.Aggregates, func(a *Aggregate) bool { return a.Name == name }) {
				continue
			}
			if err := writeProvider(ctx, tx, p.without(name), p); err != nil {
				return err
			}
		}
		return nil
	})
}

// Recount implements [Store].
func (s *SQL) Recount(ctx context.Context, dry bool) ([]*Provider, error) {
	var wrong []string
	const sum = `(SELECT COALESCE(SUM(a.amount), 0) FROM placement_allocations a WHERE a.provider = placement_inventories.provider AND a.class = placement_inventories.class)`
	if err := s.db.SelectContext(ctx, &wrong, `SELECT DISTINCT provider FROM placement_inventories WHERE used <> `+sum+` ORDER BY provider`); err != nil {
		return nil, db.Error(err)
	}
	if len(wrong) == 0 {
		return nil, nil
	}
	out, err := s.Providers(ctx, wrong...)
	if err != nil || dry {
		return out, err
	}
	for _, p := range wrong {
		if err := db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) error {
			if _, err := readProviders(ctx, tx, forUpdate, p); err != nil {
				return err
			}
			_, err := db.Exec(ctx, tx, `UPDATE placement_inventories SET used = `+sum+` WHERE provider = ?`, p)
			return err
		}); err != nil {
			return nil, fmt.Errorf("recount %s: %w", p, err)
		}
	}
	return out, nil
}

// Now implements [Store]: it is the database's clock.
func (s *SQL) Now(ctx context.Context) (time.Time, error) { return db.Now(ctx, s.db) }
