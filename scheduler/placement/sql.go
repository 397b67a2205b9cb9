package placement

import (
	"cmp"
	"context"
	_ "embed" // for Schema
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

// Schema makes the tables of [SQL], on MySQL as on SQLite. It is a migration: a
// component copies it into a file among its own, for db.Migrate.
//
//go:embed schema.sql
var Schema string

// SQL is a [Store] in a component's database, with the tables of [Schema].
type SQL struct{ db *sqlx.DB }

// NewSQL returns a Store in d, which was opened by package db.
func NewSQL(d *sqlx.DB) *SQL { return &SQL{d} }

// row is a provider's.
type row struct {
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

// read returns providers by ID, all if no ID is given. lock, " FOR UPDATE" or
// nothing, ends the queries. Their aggregates have names only, and nothing is
// counted.
func read(ctx context.Context, q sqlx.QueryerContext, lock string, ids ...string) (map[string]*Provider, error) {
	where, args := "", []any(nil)
	if len(ids) > 0 {
		where, args = in(ids)
	}
	var rows []row
	if err := sqlx.SelectContext(ctx, q, &rows, `SELECT * FROM placement_providers`+strings.ReplaceAll(where, "@", "id")+` ORDER BY id`+lock, args...); err != nil {
		return nil, db.Error(err)
	}
	out := make(map[string]*Provider, len(rows))
	for i, r := range rows {
		p := &rows[i].Data.V
		p.ID, p.Generation, p.Inventories = r.ID, r.Generation, map[string]Inventory{}
		out[r.ID] = p
	}
	var invs []inventoryRow
	if err := sqlx.SelectContext(ctx, q, &invs, `SELECT * FROM placement_inventories`+strings.ReplaceAll(where, "@", "provider")+` ORDER BY provider, class`+lock, args...); err != nil {
		return nil, db.Error(err)
	}
	for i := range invs {
		if p := out[invs[i].Provider]; p != nil {
			p.Inventories[invs[i].Class] = invs[i].inventory()
		}
	}
	return out, nil
}

// in returns a condition on the column @.
func in(ids []string) (where string, args []any) {
	for _, id := range ids {
		args = append(args, id)
	}
	return " WHERE @ IN (?" + strings.Repeat(", ?", len(ids)-1) + ")", args
}

// Put is as [Store] says.
func (s *SQL) Put(ctx context.Context, p *Provider) (out *Provider, err error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	err = again(ctx, errLost, func() error {
		err := db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) (err error) {
			out, err = put(ctx, tx, p)
			return err
		})
		switch {
		case fault.CodeOf(err) != fault.Conflict || errors.Is(err, ErrChanged):
			return err
		case p.Generation == Any: // another one was the first to make it
			return fmt.Errorf("provider %s: %w: %w", p.ID, errLost, err)
		}
		return fmt.Errorf("provider %s, generation %d: another one was faster: %w", p.ID, p.Generation, ErrChanged)
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

func put(ctx context.Context, tx *sqlx.Tx, p *Provider) (*Provider, error) {
	known, err := read(ctx, tx, " FOR UPDATE", p.ID)
	if err != nil {
		return nil, err
	}
	have := known[p.ID]
	next, err := p.replaces(have)
	if err != nil {
		return nil, err
	}
	names, err := aggregates(ctx, tx)
	if err != nil {
		return nil, err
	}
	for _, a := range next.Aggregates {
		if names[a.Name] == nil {
			return nil, fault.New(fault.NotFound, "provider %s: there is no aggregate %s", p.ID, a.Name)
		}
	}
	return next, write(ctx, tx, next, have)
}

// write writes a provider that takes the place of have, or of none if it is nil.
func write(ctx context.Context, tx *sqlx.Tx, p, have *Provider) error {
	kept := *p
	kept.ID, kept.Generation, kept.Inventories = "", 0, nil
	data := db.JSONOf(kept)
	var err error
	if have == nil {
		_, err = db.Exec(ctx, tx, `INSERT INTO placement_providers (id, generation, data) VALUES (?, ?, ?)`, p.ID, p.Generation, data)
	} else {
		_, err = db.Exec(ctx, tx, `UPDATE placement_providers SET generation = ?, data = ? WHERE id = ?`, p.Generation, data, p.ID)
	}
	if err != nil || have != nil && have.Generation == p.Generation {
		return err
	}
	if have == nil {
		have = &Provider{}
	}
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

// Remove is as [Store] says.
func (s *SQL) Remove(ctx context.Context, id string) error {
	return db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) error {
		known, err := read(ctx, tx, " FOR UPDATE", id)
		if err != nil || known[id] == nil {
			return err
		}
		for _, class := range slices.Sorted(maps.Keys(known[id].Inventories)) {
			if n := known[id].Inventories[class].Used; n > 0 {
				return fault.New(fault.Precondition, "provider %s: %s: %d are used", id, class, n)
			}
		}
		if _, err := db.Exec(ctx, tx, `DELETE FROM placement_inventories WHERE provider = ?`, id); err != nil {
			return err
		}
		_, err = db.Exec(ctx, tx, `DELETE FROM placement_providers WHERE id = ?`, id)
		return err
	})
}

// Providers is as [Store] says.
func (s *SQL) Providers(ctx context.Context, ids ...string) ([]*Provider, error) {
	known, err := read(ctx, s.db, "", ids...)
	if err != nil {
		return nil, err
	}
	names, err := aggregates(ctx, s.db)
	if err != nil {
		return nil, err
	}
	where, args := " WHERE host <> ''", []any(nil)
	if len(ids) > 0 {
		where, args = in(ids)
	}
	var counts []struct {
		Host  string `db:"host"`
		Group string `db:"group_id"`
		N     int64  `db:"n"`
	}
	if err := s.db.SelectContext(ctx, &counts, `SELECT host, group_id, COUNT(*) AS n FROM placement_consumers`+
		strings.ReplaceAll(where, "@", "host")+` GROUP BY group_id, host`, args...); err != nil {
		return nil, db.Error(err)
	}
	for _, c := range counts {
		if p := known[c.Host]; p != nil {
			p.count(c.Group, c.N)
		}
	}
	now := time.Now()
	out := make([]*Provider, 0, len(known))
	for _, id := range slices.Sorted(maps.Keys(known)) {
		p := known[id]
		p.At = now
		list := p.Aggregates
		p.Aggregates = nil
		for _, a := range list {
			if a = names[a.Name]; a != nil {
				p.Aggregates = append(p.Aggregates, a)
			}
		}
		out = append(out, p)
	}
	return out, nil
}

func aggregates(ctx context.Context, q sqlx.QueryerContext) (map[string]*Aggregate, error) {
	var rows []struct {
		Name     string                     `db:"name"`
		Metadata db.JSON[map[string]string] `db:"metadata"`
	}
	if err := sqlx.SelectContext(ctx, q, &rows, `SELECT * FROM placement_aggregates`); err != nil {
		return nil, db.Error(err)
	}
	out := make(map[string]*Aggregate, len(rows))
	for _, r := range rows {
		out[r.Name] = &Aggregate{Name: r.Name, Metadata: r.Metadata.V}
	}
	return out, nil
}

// PutAggregate is as [Store] says.
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

// RemoveAggregate is as [Store] says.
func (s *SQL) RemoveAggregate(ctx context.Context, name string) error {
	return db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) error {
		if _, err := db.Exec(ctx, tx, `DELETE FROM placement_aggregates WHERE name = ?`, name); err != nil {
			return err
		}
		known, err := read(ctx, tx, " FOR UPDATE")
		if err != nil {
			return err
		}
		for _, id := range slices.Sorted(maps.Keys(known)) {
			p := known[id]
			if !slices.ContainsFunc(p.Aggregates, func(a *Aggregate) bool { return a.Name == name }) {
				continue
			}
			if err := write(ctx, tx, p.without(name), p); err != nil {
				return err
			}
		}
		return nil
	})
}

// errLost means that a claim failed by what was no longer so a moment later.
var errLost = errors.New("lost the race for it")

// Claim is as [Store] says. It is one transaction.
func (s *SQL) Claim(ctx context.Context, claims ...Claim) error {
	err := again(ctx, errLost, func() error {
		return db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) error { return s.ClaimTx(ctx, tx, claims...) })
	})
	if errors.Is(err, errLost) {
		return fault.New(fault.Unavailable, "claim of %s: %w", claims[0].Consumer, err)
	}
	return err
}

// ClaimTx is Claim in a transaction of the caller's, together with the rows of
// the component that go with the claim. The transaction must be rolled back if
// it fails. It fails with ErrChanged when it has lost a race that Claim would
// have run again.
func (s *SQL) ClaimTx(ctx context.Context, tx *sqlx.Tx, claims ...Claim) error {
	if err := check(claims); err != nil {
		return err
	}
	pairs, err := begin(ctx, tx, claims)
	if err != nil {
		return err
	}
	list, err := plan(pairs)
	if err != nil {
		return err
	}
	if err := groups(ctx, tx, pairs); err != nil {
		return err
	}
	for i := range list {
		if err := take(ctx, tx, &list[i]); err != nil {
			return err
		}
	}
	return end(ctx, tx, pairs)
}

// begin locks the consumers and returns the claims that are to be made, with
// what there is. For those of generation 0 there is a row then.
func begin(ctx context.Context, tx *sqlx.Tx, claims []Claim) ([]pair, error) {
	now := time.Now()
	var pairs []pair
	order := make([]*Claim, len(claims))
	for i := range claims {
		order[i] = &claims[i]
	}
	slices.SortFunc(order, func(a, b *Claim) int { return cmp.Compare(a.Consumer, b.Consumer) })
	for _, c := range order {
		if c.Generation == 0 && len(c.Allocations) > 0 {
			_, err := db.Exec(ctx, tx, `INSERT INTO placement_consumers (id, generation, host, group_id, changed_at) VALUES (?, 1, ?, ?, ?)`,
				c.Consumer, c.host(), c.group(), now)
			if err == nil {
				pairs = append(pairs, pair{&Claim{Consumer: c.Consumer}, c})
				continue
			}
			if fault.CodeOf(err) != fault.Conflict {
				return nil, err
			}
		}
		have, err := claimsOf(ctx, tx, " FOR UPDATE", c.Consumer)
		if err != nil {
			return nil, err
		}
		p := pair{&have[0], c}
		done, err := p.made()
		if err != nil {
			return nil, err
		}
		if !done {
			pairs = append(pairs, p)
		}
	}
	return pairs, nil
}

// groups checks the policies. The row of a group is locked, so that its members
// claim one after the other.
func groups(ctx context.Context, tx *sqlx.Tx, pairs []pair) error {
	byGroup := map[string][]pair{}
	for _, p := range pairs {
		if g := p.want.Group; g != nil && len(p.want.Allocations) > 0 && (g.Policy == Affinity || g.Policy == AntiAffinity) {
			byGroup[g.ID] = append(byGroup[g.ID], p)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(byGroup)) {
		const lock = `UPDATE placement_groups SET claims = claims + 1 WHERE id = ?`
		n, err := db.Exec(ctx, tx, lock, id)
		if err == nil && n == 0 {
			if _, err = db.Exec(ctx, tx, `INSERT INTO placement_groups (id, claims) VALUES (?, 1)`, id); fault.CodeOf(err) == fault.Conflict {
				_, err = db.Exec(ctx, tx, lock, id)
			}
		}
		if err != nil {
			return err
		}
		var rows []struct {
			ID   string `db:"id"`
			Host string `db:"host"`
		}
		// A locking read sees what others have committed while this one waited.
		if err := tx.SelectContext(ctx, &rows, `SELECT id, host FROM placement_consumers WHERE group_id = ? ORDER BY id FOR UPDATE`, id); err != nil {
			return db.Error(err)
		}
		others := map[string]int64{}
		for _, r := range rows {
			if !slices.ContainsFunc(pairs, func(p pair) bool { return p.want.Consumer == r.ID }) {
				others[r.Host]++
			}
		}
		for _, p := range byGroup[id] {
			if err := p.want.Group.allows(p.want.host(), others); err != nil {
				return err
			}
			others[p.want.host()]++
		}
	}
	return nil
}

// take changes what is used of one provider, if the capacity, the limits for one
// consumer and the generation allow it. That is what keeps claims from each
// other.
func take(ctx context.Context, tx *sqlx.Tx, c *change) error {
	var set, where strings.Builder
	var setArgs, whereArgs []any
	for i, cc := range c.classes {
		set.WriteString(" WHEN ? THEN ?")
		setArgs = append(setArgs, cc.class, cc.delta)
		if i > 0 {
			where.WriteString(" OR ")
		}
		where.WriteString("class = ?")
		whereArgs = append(whereArgs, cc.class)
		if cc.delta > 0 {
			where.WriteString(" AND used + ? <= capacity")
			whereArgs = append(whereArgs, cc.delta)
		}
		for _, n := range cc.amounts {
			where.WriteString(" AND ? >= min_unit AND (max_unit = 0 OR ? <= max_unit) AND (step_size <= 1 OR ? % step_size = 0)")
			whereArgs = append(whereArgs, n, n, n)
		}
	}
	query := "UPDATE placement_inventories SET used = used + CASE class" + set.String() + " END WHERE provider = ? AND (" + where.String() + ")"
	args := append(append(setArgs, c.provider), whereArgs...)
	if c.generation != 0 {
		query += " AND generation = ?"
		args = append(args, c.generation)
	}
	n, err := db.Exec(ctx, tx, query, args...)
	if err != nil || n == int64(len(c.classes)) {
		return err
	}
	known, err := read(ctx, tx, " FOR UPDATE", c.provider)
	if err != nil {
		return err
	}
	p := known[c.provider]
	if p == nil {
		return fault.New(fault.NotFound, "there is no provider %s", c.provider)
	}
	return c.miss(p, int(n))
}

// miss returns why only taken of the classes of a change had room, to judge by
// the provider as it is with those taken. It is errLost if all would have by
// now.
func (c *change) miss(p *Provider, taken int) error {
	var short []error
	for i := range c.classes {
		if err := (&change{c.provider, c.generation, c.classes[i : i+1]}).fits(p); err != nil {
			short = append(short, err)
		}
	}
	switch missed := len(c.classes) - taken; {
	case len(short) < missed:
		return fmt.Errorf("provider %s: %w: %w", c.provider, errLost, ErrChanged)
	case len(short) == missed:
		return short[0]
	}
	// What was taken is missing now from a class that had room just for it.
	names := make([]string, len(c.classes))
	for i, cc := range c.classes {
		names[i] = fmt.Sprintf("%d %s", cc.delta, cc.class)
	}
	return fmt.Errorf("provider %s has no room for %s together: %w", c.provider, strings.Join(names, ", "), ErrNoRoom)
}

// end writes the allocations down.
func end(ctx context.Context, tx *sqlx.Tx, pairs []pair) error {
	now := time.Now()
	var args []any
	for _, p := range pairs {
		c := p.want
		if p.have.Generation > 0 {
			if _, err := db.Exec(ctx, tx, `DELETE FROM placement_allocations WHERE consumer = ?`, c.Consumer); err != nil {
				return err
			}
			query, with := `DELETE FROM placement_consumers WHERE id = ?`, []any{c.Consumer}
			if len(c.Allocations) > 0 {
				query = `UPDATE placement_consumers SET generation = generation + 1, host = ?, group_id = ?, changed_at = ? WHERE id = ?`
				with = []any{c.host(), c.group(), now, c.Consumer}
			}
			if _, err := db.Exec(ctx, tx, query, with...); err != nil {
				return err
			}
		} else if c.Generation == Any && len(c.Allocations) > 0 {
			if _, err := db.Exec(ctx, tx, `INSERT INTO placement_consumers (id, generation, host, group_id, changed_at) VALUES (?, 1, ?, ?, ?)`,
				c.Consumer, c.host(), c.group(), now); err != nil {
				return err
			}
		}
		for _, a := range c.Allocations {
			for _, class := range slices.Sorted(maps.Keys(a.Resources)) {
				args = append(args, c.Consumer, a.Provider, class, a.Resources[class])
			}
		}
	}
	if len(args) == 0 {
		return nil
	}
	_, err := db.Exec(ctx, tx, `INSERT INTO placement_allocations (consumer, provider, class, amount) VALUES (?, ?, ?, ?)`+
		strings.Repeat(", (?, ?, ?, ?)", len(args)/4-1), args...)
	return err
}

// claimsOf returns the claims of consumers, all if none is given, by consumer.
func claimsOf(ctx context.Context, q sqlx.QueryerContext, lock string, consumers ...string) ([]Claim, error) {
	where, args := "", []any(nil)
	if len(consumers) > 0 {
		where, args = in(consumers)
	}
	var rows []struct {
		ID         string    `db:"id"`
		Generation int64     `db:"generation"`
		Host       string    `db:"host"`
		Group      string    `db:"group_id"`
		At         time.Time `db:"changed_at"`
	}
	if err := sqlx.SelectContext(ctx, q, &rows, `SELECT * FROM placement_consumers`+strings.ReplaceAll(where, "@", "id")+` ORDER BY id`+lock, args...); err != nil {
		return nil, db.Error(err)
	}
	known := make(map[string]*Claim, len(rows))
	for _, r := range rows {
		c := &Claim{Consumer: r.ID, Generation: r.Generation, Host: r.Host, At: r.At}
		if r.Group != "" {
			c.Group = &Group{ID: r.Group}
		}
		known[r.ID] = c
	}
	if len(consumers) == 0 {
		consumers = slices.Collect(maps.Keys(known))
	}
	if len(rows) > 0 {
		var list []struct {
			Consumer string `db:"consumer"`
			Provider string `db:"provider"`
			Class    string `db:"class"`
			Amount   int64  `db:"amount"`
		}
		if err := sqlx.SelectContext(ctx, q, &list, `SELECT * FROM placement_allocations`+strings.ReplaceAll(where, "@", "consumer")+
			` ORDER BY consumer, provider, class`+lock, args...); err != nil {
			return nil, db.Error(err)
		}
		for _, r := range list {
			c := known[r.Consumer]
			if c == nil {
				continue
			}
			if n := len(c.Allocations); n == 0 || c.Allocations[n-1].Provider != r.Provider {
				c.Allocations = append(c.Allocations, Allocation{Provider: r.Provider, Resources: Resources{}})
			}
			c.Allocations[len(c.Allocations)-1].Resources[r.Class] = r.Amount
		}
	}
	consumers = slices.Sorted(slices.Values(consumers))
	out := []Claim{}
	for _, id := range slices.Compact(consumers) {
		if c := known[id]; c != nil {
			out = append(out, *c)
		} else {
			out = append(out, Claim{Consumer: id})
		}
	}
	return out, nil
}

// Claims is as [Store] says.
func (s *SQL) Claims(ctx context.Context, consumers ...string) (out []Claim, err error) {
	err = db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) error { // both tables at one moment
		out, err = claimsOf(ctx, tx, "", consumers...)
		return err
	})
	return out, err
}

// Recount is as [Store] says.
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
			if _, err := read(ctx, tx, " FOR UPDATE", p); err != nil {
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
