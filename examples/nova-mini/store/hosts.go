package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/driver"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/membership/rpccaps"
)

// The names of the services' binaries, as in Nova.
const (
	ConductorBinary = "nova-conductor"
	SchedulerBinary = "nova-scheduler"
	ComputeBinary   = "nova-compute"
)

// Service is a service on a host, as the database has it.
type Service struct {
	membership.Member

	// Number is the id of the service in the API.
	Number int
}

// Members returns the registry of the services. A service that sent no heartbeat for downAfter is down.
func (s *Store) Members(downAfter time.Duration) *membership.Registry {
	return membership.New(membership.Config{DB: s.db, DownAfter: downAfter})
}

// VersionCaps returns the object that derives the version caps of RPC clients from the versions of the services. Each call returns the same
// object, so that a change is logged only once.
func (s *Store) VersionCaps() *rpccaps.Caps { return s.caps }

// Number gives a service a number if it has none. The number is the service's id in the API. Services returns the number 0 for a
// service without a number.
func (s *Store) Number(ctx context.Context, kind, host string) error {
	return s.retryNumbering(ctx, func(ctx context.Context, tx *sqlx.Tx) error { return numberService(ctx, tx, kind, host) })
}

// retryNumbering runs f in a transaction. The function f chooses a number for a new row. If another process chooses the
// same number at the same time, retryNumbering runs f again, up to 20 times in all.
func (s *Store) retryNumbering(ctx context.Context, f func(context.Context, *sqlx.Tx) error) (err error) {
	for range 20 {
		if err = db.Tx(ctx, s.db, f); err == nil || fault.CodeOf(err) != fault.Conflict {
			return err
		}
	}
	return err
}

func numberService(ctx context.Context, tx *sqlx.Tx, kind, host string) error {
	var n int
	if err := tx.GetContext(ctx, &n, `SELECT COUNT(*) FROM service_numbers WHERE kind = ? AND host = ?`, kind, host); err != nil || n > 0 {
		return db.Error(err)
	}
	id, err := nextID(ctx, tx, `SELECT COALESCE(MAX(id), 0) + 1 FROM service_numbers`)
	if err != nil {
		return err
	}
	_, err = db.Exec(ctx, tx, `INSERT INTO service_numbers (id, kind, host) VALUES (?, ?, ?)`, id, kind, host)
	return err
}

// nextID returns a number for a new row. If two transactions choose the same number, the primary key makes one of them
// fail with Conflict, see retryNumbering.
func nextID(ctx context.Context, tx *sqlx.Tx, query string) (id int, err error) {
	return id, db.Error(tx.GetContext(ctx, &id, query))
}

// uuidSpace is the namespace of the UUIDs of services and hosts.
var uuidSpace = uuid.MustParse("0f1c5f1e-5f0b-4c86-9d1c-2b7a4f3f7a53")

// ServiceUUID returns the UUID of a service in the API. The UUID is derived from the names, so a service that is removed and added again has the same UUID.
func ServiceUUID(kind, host string) string {
	return uuid.NewSHA1(uuidSpace, []byte("service/"+kind+"/"+host)).String()
}

// UUID returns the ServiceUUID of the service.
func (s *Service) UUID() string { return ServiceUUID(s.Kind, s.Host) }

// UUID returns the UUID of the host in the API. The UUID is derived from the host's name.
func (h *Host) UUID() string { return uuid.NewSHA1(uuidSpace, []byte("host/"+h.Hostname)).String() }

// ServersOn returns the servers on the given hosts. The key of the map is the host. The servers of one host are sorted by age, the oldest first. Of each server,
// only the ID, the host and the instance name are set.
func (s *Store) ServersOn(ctx context.Context, hosts ...string) (map[string][]*Server, error) {
	out := map[string][]*Server{}
	if len(hosts) == 0 {
		return out, nil
	}
	query, args, err := sqlx.In(`SELECT id, host, instance_name FROM servers WHERE host IN (?) ORDER BY created_at, id`, hosts)
	if err != nil {
		return nil, err
	}
	var rows []*Server
	if err := s.db.SelectContext(ctx, &rows, query, args...); err != nil {
		return nil, db.Error(err)
	}
	for _, srv := range rows {
		out[*srv.Host] = append(out[*srv.Host], srv)
	}
	return out, nil
}

// Services returns all services, sorted by number. A service that sent no heartbeat for downAfter is down.
func (s *Store) Services(ctx context.Context, downAfter time.Duration) ([]Service, error) {
	members, err := s.Members(downAfter).List(ctx, "")
	if err != nil {
		return nil, err
	}
	var rows []struct {
		ID         int
		Kind, Host string
	}
	if err := s.db.SelectContext(ctx, &rows, `SELECT id, kind, host FROM service_numbers`); err != nil {
		return nil, db.Error(err)
	}
	numbers := map[[2]string]int{}
	for _, r := range rows {
		numbers[[2]string{r.Kind, r.Host}] = r.ID
	}
	out := make([]Service, len(members))
	for i, m := range members {
		out[i] = Service{m, numbers[[2]string{m.Kind, m.Host}]}
	}
	slices.SortFunc(out, func(a, b Service) int { return a.Number - b.Number })
	return out, nil
}

// SetDisabled disables or enables a service. A disabled service gets no new work. The parameter reason is the
// operator's explanation. Errors: NotFound if the service does not exist.
func (s *Store) SetDisabled(ctx context.Context, kind, host string, disabled bool, reason string) error {
	var err error
	if disabled {
		err = s.members.Disable(ctx, kind, host, reason)
	} else {
		err = s.members.Enable(ctx, kind, host)
	}
	return noService(kind, host, err)
}

// ForceDown sets or clears the mark "forced down" of a service. While the mark is set, the service is down in spite of its heartbeats, and its host gets no new
// work. Without the mark, the service is down only if it sends no heartbeats. Errors: NotFound if the service does not exist.
func (s *Store) ForceDown(ctx context.Context, kind, host string, down bool) error {
	return noService(kind, host, s.members.ForceDown(ctx, kind, host, down))
}

// noService returns Nova's error for a service that does not exist, if err is NotFound. Otherwise it returns err.
func noService(kind, host string, err error) error {
	if errors.Is(err, fault.NotFound) {
		return fault.New(fault.NotFound, "Could not find binary %s on host %s.", kind, host)
	}
	return err
}

// Host is a compute host: a provider of resources, together with its compute service.
type Host struct {
	ID            int    `db:"id"`
	Hostname      string `db:"name"`
	Driver        string `db:"driver"`
	DriverVersion string `db:"driver_version"`
	// IP is nil if it is not known, because the compute service is of an earlier release, see Address.
	IP *string `db:"ip"`
	// DriverCapabilities are those of the driver. Nil: the host reports none.
	DriverCapabilities db.JSON[[]driver.Capability] `db:"capabilities"`

	Service             Service `db:"-"`
	*placement.Provider `db:"-"`
}

// Address returns the IPv4 address of the host. If it is not known, Address returns the one that earlier releases showed for all hosts.
func (h *Host) Address() string {
	if h.IP == nil {
		return "127.0.0.1"
	}
	return *h.IP
}

// Hosts returns all compute hosts, sorted by id. A host whose service sent no heartbeat for downAfter is down.
func (s *Store) Hosts(ctx context.Context, downAfter time.Duration) ([]*Host, error) {
	hosts := []*Host{}
	if err := s.db.SelectContext(ctx, &hosts, `SELECT `+db.Columns[Host]()+` FROM hosts ORDER BY id`); err != nil {
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
		h.Provider = &placement.Provider{ID: h.Hostname, At: time.Now()} // for a host without a report
		byName[h.Hostname] = h
	}
	for _, p := range providers {
		if h := byName[p.ID]; h != nil {
			h.Provider = p
		}
	}
	for _, h := range hosts {
		h.Zone = cmp.Or(h.Zone, DefaultZone)
		h.Capabilities = map[string]string{compute.HypervisorType: h.Driver, compute.HypervisorHostname: h.Hostname, compute.HypervisorHost: h.Hostname}
		h.Disabled = "the compute service was removed" // the next loop clears it if the compute service exists
	}
	for _, v := range services {
		h := byName[v.Host]
		if h == nil || v.Kind != ComputeBinary {
			continue
		}
		h.Service = v
		h.SeenAt, h.Disabled = time.Now().Add(v.SeenAt.Sub(now)), "" // SeenAt is the time of the heartbeat by the clock of this process
		if reason := v.Unfit(); reason != "" {
			h.Disabled = "the compute service gets no new servers: " + reason
		}
	}
	return hosts, nil
}

// DefaultZone is the availability zone of hosts that report none. It is Nova's default.
const DefaultZone = "nova"

// zoneOf returns SQL for the availability zone of a server in the table with this name. A server on a host has the zone of the host. A server that has not run
// yet has the zone that its client wants. Any other server has the empty zone. The SQL has a subquery and not a join: a query that locks the row of a server
// would also lock a joined row, and MariaDB sorts the rows of a join in a temporary table, which takes half as long again for a list.
func zoneOf(table string) string {
	return fmt.Sprintf("CASE WHEN %[1]s.host IS NOT NULL THEN COALESCE((SELECT hosts.zone FROM hosts WHERE hosts.name = %[1]s.host), '%[2]s') "+
		"WHEN %[1]s.launched_at IS NULL THEN COALESCE(%[1]s.pinned_zone, '') ELSE '' END", table, DefaultZone)
}

// Zones returns the availability zones of all compute hosts, by host.
func (s *Store) Zones(ctx context.Context) (map[string]string, error) {
	var rows []struct {
		Host string  `db:"name"`
		Zone *string `db:"zone"`
	}
	if err := s.db.SelectContext(ctx, &rows, `SELECT name, zone FROM hosts`); err != nil {
		return nil, db.Error(err)
	}
	out := make(map[string]string, len(rows))
	for _, r := range rows {
		out[r.Host] = cmp.Or(orEmpty(r.Zone), DefaultZone)
	}
	return out, nil
}

// Ratios are the allocation ratios of a host's resources: the capacity for claims is the host's amount times the ratio.
type Ratios struct{ CPU, RAM, Disk float64 }
