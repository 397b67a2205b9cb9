package store

import (
	"context"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler/placement"
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

// Host is a compute host: a provider of resources, with its service.
type Host struct {
	ID            int    `db:"id"`
	Hostname      string `db:"name"`
	Driver        string `db:"driver"`
	DriverVersion string `db:"driver_version"`

	Service             Service `db:"-"`
	*placement.Provider `db:"-"`
}

// Hosts returns all compute hosts by id. One whose service was not seen for
// downAfter is not up.
func (s *Store) Hosts(ctx context.Context, downAfter time.Duration) ([]*Host, error) {
	hosts := []*Host{}
	if err := s.db.SelectContext(ctx, &hosts, `SELECT * FROM hosts ORDER BY id`); err != nil {
		return nil, db.Error(err)
	}
	now, err := db.Now(ctx, s.db)
	if err != nil {
		return nil, err
	}
	services, err := s.Services(ctx, downAfter)
	if err != nil {
		return nil, err
	}
	providers, err := s.claims.Providers(ctx)
	if err != nil {
		return nil, err
	}
	byName := make(map[string]*Host, len(hosts))
	for _, h := range hosts {
		h.Provider = &placement.Provider{ID: h.Hostname} // until its first report
		byName[h.Hostname] = h
	}
	for _, p := range providers {
		if h := byName[p.ID]; h != nil {
			h.Provider = p
		}
	}
	for _, v := range services {
		h := byName[v.Host]
		if h == nil || v.Binary != ComputeBinary {
			continue
		}
		h.Service = v
		h.SeenAt = time.Now().Add(v.SeenAt.Sub(now)) // by this process's clock
		if v.Disabled {
			h.Disabled = "the compute service is disabled: " + v.DisabledReason
		}
	}
	return hosts, nil
}

// Ratios are how far a host's resources may be over-committed.
type Ratios struct{ CPU, RAM, Disk float64 }

// ReportHost notes a worker's sign of life and what its host has.
func (s *Store) ReportHost(ctx context.Context, r *compute.HostReport, ratios Ratios) error {
	err := s.register(ctx, func(tx *sqlx.Tx, now time.Time) error {
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
		return nil
	})
	if err != nil {
		return err
	}
	p := &placement.Provider{ID: r.Host, Generation: placement.Any, Inventories: map[string]placement.Inventory{}}
	ratio := map[string]float64{compute.VCPU: ratios.CPU, compute.MemoryMB: ratios.RAM, compute.DiskGB: ratios.Disk}
	for _, a := range r.Resources.Amounts() {
		p.Inventories[a.Class] = placement.Inventory{Total: int64(a.N), Ratio: ratio[a.Class]}
	}
	_, err = s.claims.Put(ctx, p)
	return err
}

// Claims are what servers hold of the hosts. A claim for a server is made only
// while it waits for a host, and a claim and a deletion exclude each other: it
// fails with ErrStale otherwise.
func (s *Store) Claims() placement.Store { return claims{s.claims, s} }

type claims struct {
	*placement.SQL

	store *Store
}

func (c claims) Claim(ctx context.Context, list ...placement.Claim) error {
	return c.store.tx(ctx, func(tx *sqlx.Tx, _ time.Time) error {
		for _, claim := range list {
			n, err := exec(ctx, tx, `UPDATE servers SET lease = lease WHERE id = ? AND task_state = ?`, claim.Consumer, Scheduling)
			if err != nil {
				return err
			}
			if n == 0 {
				return compute.ErrStale
			}
		}
		return c.ClaimTx(ctx, tx, list...)
	})
}

// release drops a server's claim, if it has one.
func (s *Store) release(ctx context.Context, tx *sqlx.Tx, serverID string) error {
	return s.claims.ClaimTx(ctx, tx, placement.Claim{Consumer: serverID, Generation: placement.Any})
}
