package store

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/operation"
	"github.com/armature-go/armature/service/quota"
)

// CreateServer adds the servers of one request and the operations that build them, in one transaction. The new servers have no hosts.
// A conductor can build a server from these rows alone, without the request. CreateServer sets VMState, CreatedAt and UpdatedAt; after
// an error these fields have no meaning. All servers must have the same GroupID and project. Errors: Denied if a server has no
// project, or a quota is exceeded; Invalid if the metadata of a server have more than 65,535 bytes as JSON, or the group does not
// exist; Conflict with the reason DuplicateKey if an ID exists.
func (s *Store) CreateServer(ctx context.Context, list ...*Server) error {
	return overQuota(s.createServers(ctx, list))
}

// NewServers describes the servers of one request. At least Least and at most Most servers are created.
type NewServers struct {
	Least, Most int
	// Make returns n servers. It may be called several times.
	Make func(n int) []*Server
	// CreateServers calls the function Also with the new servers, in the transaction that creates them.
	Also func(context.Context, []*Server) error
}

// CreateServers is like CreateServer, but creates as many of the servers as the quota of their project allows. If the quota allows
// fewer than Least, CreateServers creates no server and returns Denied. It must not be called in a transaction, because it runs several transactions.
func (s *Store) CreateServers(ctx context.Context, of NewServers) error {
	n := of.Most
	for attempt := 1; ; attempt++ {
		list := of.Make(n)
		err := s.Tx(ctx, func(ctx context.Context) error {
			if err := s.createServers(ctx, list); err != nil {
				return err
			}
			return of.Also(ctx, list)
		})
		if !errors.Is(err, quota.ErrExceeded) {
			return err
		}
		room, readErr := s.room(ctx, list[0])
		if readErr != nil {
			return readErr
		}
		if room = min(room, n); room < of.Least || attempt == maxCreations {
			return tooMany(err, of, list[0])
		}
		n = room
	}
}

// maxCreations limits the attempts of CreateServers while other requests use up the quota.
const maxCreations = 3

// createServers is CreateServer, but does not translate [quota.ErrExceeded].
func (s *Store) createServers(ctx context.Context, list []*Server) error {
	for _, srv := range list {
		if srv.ProjectID == "" {
			return fault.New(fault.Denied, "A server needs a project: use a token that is scoped to one.")
		}
		if err := checkMetadata(srv.Metadata); err != nil {
			return err
		}
	}
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, now time.Time) error {
		if list[0].GroupID != nil {
			if err := s.joinGroup(ctx, tx, *list[0].GroupID, list[0].UserID, len(list)); err != nil {
				return err
			}
		}
		claims := make([]quota.Claim, len(list))
		for i, srv := range list {
			srv.VMState, srv.CreatedAt, srv.UpdatedAt = Building, now, now
			if err := s.addServer(ctx, tx, srv); err != nil {
				return err
			}
			claims[i] = srv.quotaClaim(srv.Need())
		}
		return s.quotas.Reserve(ctx, tx, claims...) // last, because other requests of the project must wait from here until the commit
	})
}

// addServer adds a server and the operation that builds it.
func (s *Store) addServer(ctx context.Context, tx *sqlx.Tx, srv *Server) error {
	if _, err := tx.NamedExecContext(ctx, insertServer, srv); err != nil {
		return db.Error(err)
	}
	_, err := operation.Begin(ctx, s.ops, srv.creation(), srv.ID, &CreateData{Need: srv.Need(), OnlyHost: srv.OnlyHost, Zone: orEmpty(srv.PinnedZone), GroupID: srv.GroupID, Guest: srv.GuestNeeds(), Specs: srv.Flavor().ExtraSpecs, Driver: srv.DriverNeeds()})
	return err
}

// insertServer is SQL that adds a server's row with all columns of the table. updateServer is SQL
// that writes all columns of an existing row.
var insertServer, updateServer = func() (insert, update string) {
	columns := tableColumns()
	values, sets := make([]string, len(columns)), make([]string, len(columns))
	for i, name := range columns {
		values[i] = ":" + strings.Trim(name, `"`)
		sets[i] = name + " = " + values[i]
	}
	return "INSERT INTO servers (" + strings.Join(columns, ", ") + ") VALUES (" + strings.Join(values, ", ") + ")",
		"UPDATE servers SET " + strings.Join(sets, ", ") + " WHERE id = :id"
}()

// Activate sets vm_state to active, the power state to running and launched_at to now, after the server has been built. It runs in the transaction in
// which the operation ends. Errors: [compute.ErrStale] if the server does not exist.
func (s *Store) Activate(ctx context.Context, tx *sqlx.Tx, id string) error {
	return db.ExecOne(ctx, tx, compute.ErrStale, `UPDATE servers SET vm_state = ?, power_state = ?, launched_at = UTC_TIMESTAMP(6), updated_at = UTC_TIMESTAMP(6), admin_pass = NULL WHERE id = ?`, Active, compute.Running, id)
}

// FailCreate records that the creation of a server has failed: the server is in ERROR, with a fault and without a host, and
// its claim is released. If a compute service still has the server, it later detects the server as an orphan and destroys
// it. FailCreate runs in the transaction in which the operation ends. It is not an error if the server does not exist.
func (s *Store) FailCreate(ctx context.Context, tx *sqlx.Tx, id, message, details string) error {
	n, err := s.fail(ctx, tx, id, message, details)
	if err == nil && n > 0 {
		_, err = db.Exec(ctx, tx, `UPDATE servers SET host = NULL, admin_pass = NULL WHERE id = ?`, id)
	}
	if err != nil {
		return err
	}
	return s.release(ctx, tx, id) // even if the server's row no longer exists: the operation may have claimed a host after the deletion
}
