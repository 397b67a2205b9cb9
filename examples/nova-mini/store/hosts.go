package store

import (
	"context"
	"math"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
)

// Binary names of the services, Nova's.
const (
	ConductorBinary = "nova-conductor"
	SchedulerBinary = "nova-scheduler"
	ComputeBinary   = "nova-compute"
)

// Service is one process, as the others know it.
type Service struct {
	ID             int       `db:"id"`
	Binary         string    `db:"binary_name"`
	Host           string    `db:"host"`
	Disabled       bool      `db:"disabled"`
	DisabledReason string    `db:"disabled_reason"`
	SeenAt         time.Time `db:"seen_at"`
	Up             bool      `db:"-"`
}

// Beat notes a sign of life of a service, by the database's clock.
func (s *Store) Beat(ctx context.Context, binary, host string) error {
	return s.register(ctx, func(tx *sqlx.Tx, now time.Time) error { return beat(ctx, tx, now, binary, host) })
}

// register runs f again when it chose a number for a new row that somebody else
// chose at the same moment.
func (s *Store) register(ctx context.Context, f func(*sqlx.Tx, time.Time) error) (err error) {
	for range 20 {
		if err = s.tx(ctx, f); err == nil || fault.CodeOf(err) != fault.Conflict {
			return err
		}
	}
	return err
}

func beat(ctx context.Context, tx *sqlx.Tx, now time.Time, binary, host string) error {
	n, err := exec(ctx, tx, `UPDATE services SET seen_at = ? WHERE binary_name = ? AND host = ?`, now, binary, host)
	if err != nil || n == 1 {
		return err
	}
	id, err := nextID(ctx, tx, `SELECT COALESCE(MAX(id), 0) + 1 FROM services`)
	if err != nil {
		return err
	}
	_, err = exec(ctx, tx, `INSERT INTO services (id, binary_name, host, disabled, disabled_reason, seen_at) VALUES (?, ?, ?, FALSE, '', ?)`,
		id, binary, host, now)
	return err
}

// nextID returns a number for a new row. Of two that choose the same one at once
// one gets a Conflict from the primary key, see register.
func nextID(ctx context.Context, tx *sqlx.Tx, query string) (id int, err error) {
	return id, db.Error(tx.GetContext(ctx, &id, query))
}

// Services returns all services by id. One that was not seen for downAfter is
// not up.
func (s *Store) Services(ctx context.Context, downAfter time.Duration) ([]Service, error) {
	out := []Service{}
	now, err := db.Now(ctx, s.db)
	if err != nil {
		return nil, err
	}
	if err := s.db.SelectContext(ctx, &out, `SELECT * FROM services ORDER BY id`); err != nil {
		return nil, db.Error(err)
	}
	for i := range out {
		out[i].Up = now.Sub(out[i].SeenAt) <= downAfter
	}
	return out, nil
}

// SetDisabled says whether a service takes new work. NotFound.
func (s *Store) SetDisabled(ctx context.Context, binary, host string, disabled bool, reason string) error {
	return s.tx(ctx, func(tx *sqlx.Tx, _ time.Time) error {
		n, err := exec(ctx, tx, `UPDATE services SET disabled = ?, disabled_reason = ? WHERE binary_name = ? AND host = ?`, disabled, reason, binary, host)
		if err == nil && n == 0 {
			return fault.New(fault.NotFound, "Could not find binary %s on host %s.", binary, host)
		}
		return err
	})
}

// Inventory is how much of one resource class a host has.
type Inventory struct {
	Host     string  `db:"host"`
	Class    string  `db:"class"`
	Total    int64   `db:"total"`
	Reserved int64   `db:"reserved"`
	Ratio    float64 `db:"ratio"`
	Used     int64   `db:"used"`
}

// Capacity returns how much may be allocated in all: (total - reserved) * ratio.
func (i *Inventory) Capacity() int64 {
	return int64(math.Floor(float64(i.Total-i.Reserved) * i.Ratio))
}

// Host is a compute host with what it has and who is on it.
type Host struct {
	ID            int    `db:"id"`
	Hostname      string `db:"name"`
	Driver        string `db:"driver"`
	DriverVersion string `db:"driver_version"`

	Service     Service              `db:"-"`
	Inventories map[string]Inventory `db:"-"` // by class
}

// Name makes a Host one that the scheduler can rank.
func (h *Host) Name() string { return h.Hostname }

// Free returns how much of a resource class can still be allocated.
func (h *Host) Free(class string) int64 {
	inv := h.Inventories[class]
	return inv.Capacity() - inv.Used
}

// Hosts returns all compute hosts by id.
func (s *Store) Hosts(ctx context.Context, downAfter time.Duration) ([]*Host, error) {
	hosts := []*Host{}
	if err := s.db.SelectContext(ctx, &hosts, `SELECT * FROM hosts ORDER BY id`); err != nil {
		return nil, db.Error(err)
	}
	services, err := s.Services(ctx, downAfter)
	if err != nil {
		return nil, err
	}
	byName := make(map[string]*Host, len(hosts))
	for _, h := range hosts {
		h.Inventories = make(map[string]Inventory, 3)
		byName[h.Hostname] = h
	}
	for _, v := range services {
		if h := byName[v.Host]; h != nil && v.Binary == ComputeBinary {
			h.Service = v
		}
	}
	var invs []Inventory
	if err := s.db.SelectContext(ctx, &invs, `SELECT * FROM inventories`); err != nil {
		return nil, db.Error(err)
	}
	for _, i := range invs {
		if h := byName[i.Host]; h != nil {
			h.Inventories[i.Class] = i
		}
	}
	return hosts, nil
}

// ServersByHost returns how many servers have a claim on each host that has any.
func (s *Store) ServersByHost(ctx context.Context) (map[string]int, error) {
	var counts []struct {
		Host string `db:"host"`
		N    int    `db:"n"`
	}
	err := s.db.SelectContext(ctx, &counts, `SELECT host, COUNT(DISTINCT server_id) AS n FROM allocations GROUP BY host`)
	out := make(map[string]int, len(counts))
	for _, c := range counts {
		out[c.Host] = c.N
	}
	return out, db.Error(err)
}

// Ratios are how far a host's resources may be over-committed.
type Ratios struct{ CPU, RAM, Disk float64 }

// ReportHost notes a worker's sign of life and what its host has.
func (s *Store) ReportHost(ctx context.Context, r *compute.HostReport, ratios Ratios) error {
	return s.register(ctx, func(tx *sqlx.Tx, now time.Time) error {
		if err := beat(ctx, tx, now, ComputeBinary, r.Host); err != nil {
			return err
		}
		n, err := exec(ctx, tx, `UPDATE hosts SET driver = ?, driver_version = ? WHERE name = ?`, r.Driver, r.DriverVersion, r.Host)
		if err != nil {
			return err
		}
		if n == 0 {
			id, err := nextID(ctx, tx, `SELECT COALESCE(MAX(id), 0) + 1 FROM hosts`)
			if err != nil {
				return err
			}
			if _, err := exec(ctx, tx, `INSERT INTO hosts (id, name, driver, driver_version) VALUES (?, ?, ?, ?)`,
				id, r.Host, r.Driver, r.DriverVersion); err != nil {
				return err
			}
		}
		ratio := map[string]float64{compute.VCPU: ratios.CPU, compute.MemoryMB: ratios.RAM, compute.DiskGB: ratios.Disk}
		for _, a := range r.Resources.Amounts() {
			n, err := exec(ctx, tx, `UPDATE inventories SET total = ?, ratio = ? WHERE host = ? AND class = ?`, a.N, ratio[a.Class], r.Host, a.Class)
			if err != nil {
				return err
			}
			if n == 1 {
				continue
			}
			if _, err := exec(ctx, tx, `INSERT INTO inventories (host, class, total, reserved, ratio, used) VALUES (?, ?, ?, 0, ?, 0)`,
				r.Host, a.Class, a.N, ratio[a.Class]); err != nil {
				return err
			}
		}
		return nil
	})
}

// ErrNoRoom means that the host has not enough left for the claim.
var ErrNoRoom = fault.Sentinel(fault.Exhausted, "NoRoom", "the host has not enough room left")

// Claim takes what a server needs from a host, all or nothing, and returns the
// host. If the server has a claim already, it returns that one's host. ErrNoRoom;
// ErrStale: the server does not wait for a host.
func (s *Store) Claim(ctx context.Context, serverID, host string, need compute.Resources) (string, error) {
	claimed := host
	err := s.tx(ctx, func(tx *sqlx.Tx, _ time.Time) error {
		claimed = host
		// The server's row is locked first: a claim and a deletion exclude each
		// other.
		n, err := exec(ctx, tx, `UPDATE servers SET lease = lease WHERE id = ? AND task_state = ?`, serverID, Scheduling)
		if err != nil {
			return err
		}
		if n == 0 {
			return compute.ErrStale
		}
		var have []string
		if err := tx.SelectContext(ctx, &have, `SELECT DISTINCT host FROM allocations WHERE server_id = ?`, serverID); err != nil {
			return db.Error(err)
		}
		if len(have) > 0 {
			claimed = have[0]
			return nil
		}
		for _, a := range need.Amounts() { // always in the same order, so that claims do not deadlock
			n, err := exec(ctx, tx, `UPDATE inventories SET used = used + ? WHERE host = ? AND class = ? AND used + ? <= (total - reserved) * ratio`,
				a.N, host, a.Class, a.N)
			if err != nil {
				return err
			}
			if n == 0 {
				return ErrNoRoom
			}
			if _, err := exec(ctx, tx, `INSERT INTO allocations (server_id, class, host, amount) VALUES (?, ?, ?, ?)`,
				serverID, a.Class, host, a.N); err != nil {
				return err
			}
		}
		return nil
	})
	return claimed, err
}

// release drops a server's claim, if it has one.
func release(ctx context.Context, tx *sqlx.Tx, serverID string) error {
	var list []struct {
		Host   string `db:"host"`
		Class  string `db:"class"`
		Amount int64  `db:"amount"`
	}
	if err := tx.SelectContext(ctx, &list, `SELECT host, class, amount FROM allocations WHERE server_id = ? ORDER BY class`, serverID); err != nil {
		return db.Error(err)
	}
	for _, a := range list {
		if _, err := exec(ctx, tx, `UPDATE inventories SET used = used - ? WHERE host = ? AND class = ?`, a.Amount, a.Host, a.Class); err != nil {
			return err
		}
	}
	_, err := exec(ctx, tx, `DELETE FROM allocations WHERE server_id = ?`, serverID)
	return err
}
