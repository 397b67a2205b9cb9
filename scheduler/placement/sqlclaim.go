package placement

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/fault"
)

// Claim implements [Store]. It is one transaction, which is repeated if another claim was first. It fails with Unavailable if
// another claim was first in each of 20 attempts.
func (s *SQL) Claim(ctx context.Context, claims ...Claim) error {
	err := retryOn(ctx, errLost, func() error {
		return db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) error { return s.ClaimTx(ctx, tx, claims...) })
	})
	if errors.Is(err, errLost) {
		return fault.New(fault.Unavailable, "claim of %s: %w", claims[0].Consumer, err)
	}
	return err
}

// ClaimTx does what Claim does in the caller's transaction, so that the component's own rows belong to the same transaction.
// After an error the caller must roll back. ClaimTx makes one attempt: if another claim was first, it fails with ErrChanged.
func (s *SQL) ClaimTx(ctx context.Context, tx *sqlx.Tx, claims ...Claim) error {
	if err := checkClaims(claims); err != nil {
		return err
	}
	changes, err := lockConsumers(ctx, tx, claims)
	if err != nil {
		return err
	}
	plan, err := newPlan(changes)
	if err != nil {
		return err
	}
	for i := range plan.groups {
		hosts, err := lockGroup(ctx, tx, plan, plan.groups[i].id)
		if err != nil {
			return err
		}
		if err := plan.groups[i].check(hosts); err != nil {
			return err
		}
	}
	for i := range plan.providers {
		if err := changeProvider(ctx, tx, &plan.providers[i]); err != nil {
			return err
		}
	}
	return writeClaims(ctx, tx, plan.consumers)
}

// insertConsumer adds the row of a consumer.
func insertConsumer(ctx context.Context, tx *sqlx.Tx, c *Claim, now time.Time) error {
	_, err := db.Exec(ctx, tx, `INSERT INTO placement_consumers (id, generation, host, group_id, changed_at) VALUES (?, 1, ?, ?, ?)`,
		c.Consumer, c.host(), c.group(), now)
	return err
}

// lockConsumers locks the consumers in the order of their IDs, and returns the changes that are still to be made. For a
// claim of generation 0 it inserts the consumer's row at once, so the usual claim needs no read.
func lockConsumers(ctx context.Context, tx *sqlx.Tx, claims []Claim) ([]consumerChange, error) {
	now := time.Now()
	order := make([]*Claim, len(claims))
	for i := range claims {
		order[i] = &claims[i]
	}
	slices.SortFunc(order, func(a, b *Claim) int { return cmp.Compare(a.Consumer, b.Consumer) })
	var changes []consumerChange
	for _, c := range order {
		have, err := lockConsumer(ctx, tx, c, now)
		if err != nil {
			return nil, err
		}
		change := consumerChange{have, c}
		done, err := change.done()
		if err != nil {
			return nil, err
		}
		if !done {
			changes = append(changes, change)
		}
	}
	return changes, nil
}

// lockConsumer locks the row of a claim's consumer, or adds it, and returns the claim that the consumer has.
func lockConsumer(ctx context.Context, tx *sqlx.Tx, c *Claim, now time.Time) (*Claim, error) {
	if c.Generation == 0 && len(c.Allocations) > 0 {
		err := insertConsumer(ctx, tx, c, now)
		if fault.CodeOf(err) != fault.Conflict {
			return &Claim{Consumer: c.Consumer}, err
		}
	}
	have, err := readClaims(ctx, tx, forUpdate, c.Consumer)
	if err != nil {
		return nil, err
	}
	return &have[0], nil
}

// lockGroup locks the row of a group, so that its members claim one after the other. It returns the number of members on
// each host, without the consumers that the plan changes.
func lockGroup(ctx context.Context, tx *sqlx.Tx, plan *claimPlan, id string) (map[string]int64, error) {
	const lock = `UPDATE placement_groups SET claims = claims + 1 WHERE id = ?`
	n, err := db.Exec(ctx, tx, lock, id)
	if err == nil && n == 0 {
		if _, err = db.Exec(ctx, tx, `INSERT INTO placement_groups (id, claims) VALUES (?, 1)`, id); fault.CodeOf(err) == fault.Conflict {
			_, err = db.Exec(ctx, tx, lock, id)
		}
	}
	if err != nil {
		return nil, err
	}
	var rows []struct {
		ID   string `db:"id"`
		Host string `db:"host"`
	}
	// A locking read also returns rows that were committed while this transaction waited for the lock.
	if err := tx.SelectContext(ctx, &rows, `SELECT id, host FROM placement_consumers WHERE group_id = ? ORDER BY id FOR UPDATE`, id); err != nil {
		return nil, db.Error(err)
	}
	hosts := map[string]int64{}
	for _, r := range rows {
		if !plan.changesClaimOf(r.ID) {
			hosts[r.Host]++
		}
	}
	return hosts, nil
}

// changeProvider changes the used amounts of one provider with one statement, in which the database checks the capacity,
// the limits of one consumer and the generation. This check prevents over-commitment.
func changeProvider(ctx context.Context, tx *sqlx.Tx, p *providerChange) error {
	query, args := p.statement()
	n, err := db.Exec(ctx, tx, query, args...)
	if err != nil || n == int64(len(p.classes)) {
		return err
	}
	known, err := readProviders(ctx, tx, forUpdate, p.id)
	if err != nil {
		return err
	}
	if known[p.id] == nil {
		return p.notFound()
	}
	return p.rejection(known[p.id], int(n))
}

// statement returns the UPDATE of the inventories. The statement updates only the classes whose conditions hold.
func (p *providerChange) statement() (query string, args []any) {
	var deltas, conditions []string
	var deltaArgs, conditionArgs []any
	for _, cc := range p.classes {
		deltas = append(deltas, "WHEN ? THEN ?")
		deltaArgs = append(deltaArgs, cc.class, cc.delta)
		limits := []string{"class = ?"}
		conditionArgs = append(conditionArgs, cc.class)
		if cc.delta > 0 {
			limits = append(limits, "used + ? <= capacity")
			conditionArgs = append(conditionArgs, cc.delta)
		}
		for _, n := range cc.amounts {
			limits = append(limits, "? >= min_unit", "(max_unit = 0 OR ? <= max_unit)", "(step_size <= 1 OR ? % step_size = 0)")
			conditionArgs = append(conditionArgs, n, n, n)
		}
		conditions = append(conditions, strings.Join(limits, " AND "))
	}
	query = "UPDATE placement_inventories SET used = used + CASE class " + strings.Join(deltas, " ") + " END WHERE provider = ? AND (" +
		strings.Join(conditions, " OR ") + ")"
	args = slices.Concat(deltaArgs, []any{p.id}, conditionArgs)
	if p.generation != 0 {
		query += " AND generation = ?"
		args = append(args, p.generation)
	}
	return query, args
}

// writeClaims writes the consumers' new claims.
func writeClaims(ctx context.Context, tx *sqlx.Tx, changes []consumerChange) error {
	now := time.Now()
	var allocations []any // the values of all rows
	for _, change := range changes {
		if err := writeConsumer(ctx, tx, change, now); err != nil {
			return err
		}
		for _, a := range change.want.Allocations {
			for _, class := range slices.Sorted(maps.Keys(a.Resources)) {
				allocations = append(allocations, change.want.Consumer, a.Provider, class, a.Resources[class])
			}
		}
	}
	if len(allocations) == 0 {
		return nil
	}
	_, err := db.Exec(ctx, tx, `INSERT INTO placement_allocations (consumer, provider, class, amount) VALUES (?, ?, ?, ?)`+
		strings.Repeat(", (?, ?, ?, ?)", len(allocations)/4-1), allocations...)
	return err
}

// writeConsumer writes the row of a consumer and removes its old allocations.
func writeConsumer(ctx context.Context, tx *sqlx.Tx, change consumerChange, now time.Time) error {
	c, has := change.want, len(change.want.Allocations) > 0
	if change.have.Generation == 0 {
		if has && c.Generation == Any { // for generation 0, lockConsumers has inserted the row
			return insertConsumer(ctx, tx, c, now)
		}
		return nil
	}
	if _, err := db.Exec(ctx, tx, `DELETE FROM placement_allocations WHERE consumer = ?`, c.Consumer); err != nil {
		return err
	}
	if !has {
		_, err := db.Exec(ctx, tx, `DELETE FROM placement_consumers WHERE id = ?`, c.Consumer)
		return err
	}
	_, err := db.Exec(ctx, tx, `UPDATE placement_consumers SET generation = generation + 1, host = ?, group_id = ?, changed_at = ? WHERE id = ?`,
		c.host(), c.group(), now, c.Consumer)
	return err
}

// Claims implements [Store].
func (s *SQL) Claims(ctx context.Context, consumers ...string) (out []Claim, err error) {
	err = db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) error { // so that both tables are read in the same state
		out, err = readClaims(ctx, tx, "", consumers...)
		return err
	})
	return out, err
}

type consumerRow struct {
	ID         string    `db:"id"`
	Generation int64     `db:"generation"`
	Host       string    `db:"host"`
	Group      string    `db:"group_id"`
	At         time.Time `db:"changed_at"`
}

type allocationRow struct {
	Consumer string `db:"consumer"`
	Provider string `db:"provider"`
	Class    string `db:"class"`
	Amount   int64  `db:"amount"`
}

// readClaims returns the claims of the consumers, sorted by consumer: all claims if no consumer is given.
func readClaims(ctx context.Context, q sqlx.QueryerContext, lock string, consumers ...string) ([]Claim, error) {
	var rows []consumerRow
	if err := consumerRows.read(ctx, q, &rows, lock, consumers); err != nil {
		return nil, err
	}
	known := make(map[string]*Claim, len(rows))
	for _, r := range rows {
		c := &Claim{Consumer: r.ID, Generation: r.Generation, Host: r.Host, At: r.At}
		if r.Group != "" {
			c.Group = &Group{ID: r.Group}
		}
		known[r.ID] = c
	}
	if len(rows) > 0 {
		if err := readAllocations(ctx, q, lock, consumers, known); err != nil {
			return nil, err
		}
	}
	if len(consumers) == 0 {
		consumers = slices.Collect(maps.Keys(known))
	}
	out := []Claim{}
	for _, id := range slices.Compact(slices.Sorted(slices.Values(consumers))) {
		if c := known[id]; c != nil {
			out = append(out, *c)
		} else {
			out = append(out, Claim{Consumer: id})
		}
	}
	return out, nil
}

// readAllocations adds the allocations of the consumers to the known claims: all allocations if no consumer is given.
func readAllocations(ctx context.Context, q sqlx.QueryerContext, lock string, consumers []string, known map[string]*Claim) error {
	var rows []allocationRow
	if err := allocationRows.read(ctx, q, &rows, lock, consumers); err != nil {
		return err
	}
	for _, r := range rows {
		c := known[r.Consumer]
		if c == nil {
			continue
		}
		if n := len(c.Allocations); n == 0 || c.Allocations[n-1].Provider != r.Provider {
			c.Allocations = append(c.Allocations, Allocation{Provider: r.Provider, Resources: Resources{}})
		}
		c.Allocations[len(c.Allocations)-1].Resources[r.Class] = r.Amount
	}
	return nil
}
