package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/membership"
	"github.com/armature-go/armature/service/membership/rpccaps"
	"github.com/armature-go/armature/service/operation"
)

// Binary names of the services, as in Nova.
const (
	ConductorBinary = "nova-conductor"
	SchedulerBinary = "nova-scheduler"
	ComputeBinary   = "nova-compute"
)

// Service is one service process as the database knows it.
type Service struct {
	membership.Member

	// Number is the id of the service in the API.
	Number int
}

// Members returns the registry of the services. A service that sent no heartbeat for downAfter is down.
func (s *Store) Members(downAfter time.Duration) *membership.Registry {
	return membership.New(membership.Config{DB: s.db, DownAfter: downAfter})
}

// VersionCaps returns the Caps that compute the version caps of RPC clients from the services. Each call returns the same Caps, so that a
// change is logged once.
func (s *Store) VersionCaps() *rpccaps.Caps { return s.caps }

// Number gives a service a number if the service has no number yet. In the result of Services, a member without a number
// has the number 0; a number without a member is left out.
func (s *Store) Number(ctx context.Context, kind, host string) error {
	return s.retryNumbering(ctx, func(ctx context.Context, tx *sqlx.Tx) error { return numberService(ctx, tx, kind, host) })
}

// retryNumbering runs f, which chooses a number for a new row, in a transaction. It runs f again, up to 20 times in
// all, when another process has chosen the same number at the same moment.
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

// nextID returns a number for a new row. If two transactions choose the same number, the primary key refuses one of
// them with Conflict, see retryNumbering.
func nextID(ctx context.Context, tx *sqlx.Tx, query string) (id int, err error) {
	return id, db.Error(tx.GetContext(ctx, &id, query))
}

// uuidSpace is the namespace of the UUIDs of services and hosts.
var uuidSpace = uuid.MustParse("0f1c5f1e-5f0b-4c86-9d1c-2b7a4f3f7a53")

// ServiceUUID returns the UUID of a service in the API. It follows from the names, so it stays if the service is removed and added again.
func ServiceUUID(kind, host string) string {
	return uuid.NewSHA1(uuidSpace, []byte("service/"+kind+"/"+host)).String()
}

// UUID is ServiceUUID of the service.
func (s *Service) UUID() string { return ServiceUUID(s.Kind, s.Host) }

// UUID returns the UUID of the host in the API. It follows from the name.
func (h *Host) UUID() string { return uuid.NewSHA1(uuidSpace, []byte("host/"+h.Hostname)).String() }

// ServersOn returns the IDs of the servers on hosts, by host, the oldest first.
func (s *Store) ServersOn(ctx context.Context, hosts ...string) (map[string][]string, error) {
	out := map[string][]string{}
	if len(hosts) == 0 {
		return out, nil
	}
	query, args, err := sqlx.In(`SELECT id, host FROM servers WHERE host IN (?) ORDER BY created_at, id`, hosts)
	if err != nil {
		return nil, err
	}
	var rows []struct {
		ID   string `db:"id"`
		Host string `db:"host"`
	}
	if err := s.db.SelectContext(ctx, &rows, query, args...); err != nil {
		return nil, db.Error(err)
	}
	for _, r := range rows {
		out[r.Host] = append(out[r.Host], r.ID)
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

// SetDisabled disables or enables a service. A disabled service gets no new work; reason is the operator's
// explanation. Errors: NotFound, if the service does not exist.
func (s *Store) SetDisabled(ctx context.Context, kind, host string, disabled bool, reason string) error {
	var err error
	if disabled {
		err = s.members.Disable(ctx, kind, host, reason)
	} else {
		err = s.members.Enable(ctx, kind, host)
	}
	return noService(kind, host, err)
}

// ForceDown makes a service down in spite of its heartbeats, so that its host gets no new work, or undoes this. Errors: NotFound, if the service does not
// exist.
func (s *Store) ForceDown(ctx context.Context, kind, host string, down bool) error {
	return noService(kind, host, s.members.ForceDown(ctx, kind, host, down))
}

// noService gives the error NotFound for a service Nova's text.
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

	Service             Service `db:"-"`
	*placement.Provider `db:"-"`
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
		h.Provider = &placement.Provider{ID: h.Hostname, At: time.Now()} // until its first report
		byName[h.Hostname] = h
	}
	for _, p := range providers {
		if h := byName[p.ID]; h != nil {
			h.Provider = p
		}
	}
	for _, h := range hosts {
		h.Disabled = "the compute service was removed" // unless it is among the services
	}
	for _, v := range services {
		h := byName[v.Host]
		if h == nil || v.Kind != ComputeBinary {
			continue
		}
		h.Service = v
		h.SeenAt, h.Disabled = time.Now().Add(v.SeenAt.Sub(now)), "" // the time of the heartbeat by this process's clock
		if reason := v.Unfit(); reason != "" {
			h.Disabled = "the compute service gets no new servers: " + reason
		}
	}
	return hosts, nil
}

// Ratios are the allocation ratios of a host's resources: the capacity for claims is the host's amount times the ratio.
type Ratios struct{ CPU, RAM, Disk float64 }

// checkVersions checks the versions that a compute service reports. They are the caps of every RPC client, so a report about the
// interface of another service, or without a version that clients can use, would block this interface for all. Errors: Invalid.
func checkVersions(interfaces map[string][]string) error {
	oldest := compute.Worker
	for oldest.Older != nil {
		oldest = oldest.Older
	}
	for name, list := range interfaces {
		if name != oldest.Name {
			return fault.New(fault.Invalid, "it reports versions of the interface %s, but a compute service serves only %s", strconv.QuoteToASCII(name), oldest.Name)
		}
		if !slices.ContainsFunc(list, func(text string) bool {
			var v rpc.Version
			return v.UnmarshalText([]byte(text)) == nil && v.Major >= oldest.Version.Major && v.Major <= compute.Worker.Version.Major
		}) {
			return fault.New(fault.Invalid, "it reports no version of the interface %s that RPC clients can use: %q has no version MAJOR.MINOR with a major version from %d to %d; if the compute service is of a later release, upgrade the conductors first",
				name, list, oldest.Version.Major, compute.Worker.Version.Major)
		}
	}
	return nil
}

// ClaimHost makes a process the owner of a host: the only process that does the work of the host. Errors: Invalid if
// the host's name is not valid, the process has no id, or its versions cannot be used; membership.ErrHeld if another process owns the
// host and has sent a heartbeat within downAfter; Unavailable with the reason VersionsNotKnown if the process must wait before it
// serves, see membership.Registry.ServeDelay. After the wait the process calls ClaimHost again.
func (s *Store) ClaimHost(ctx context.Context, r *compute.ClaimHostRequest, downAfter time.Duration) error {
	if err := rpc.CheckHost(r.Host); err != nil {
		return err
	}
	if r.Instance.ID == "" {
		return fault.New(fault.Invalid, "claim host %s: the process has no id", r.Host)
	}
	if err := checkVersions(r.Interfaces); err != nil {
		return fmt.Errorf("claim host %s: %w", r.Host, err)
	}
	members := s.Members(downAfter)
	self := membership.Self{Kind: ComputeBinary, Host: r.Host, Version: 1, Interfaces: r.Interfaces, Instance: membership.Instance(r.Instance)}
	if err := members.Announce(ctx, self); err != nil {
		return err
	}
	wait, err := members.ServeDelay(ctx, ComputeBinary, r.Host, 0)
	if err != nil {
		return err
	}
	if wait > 0 {
		return fmt.Errorf("claim host %s: %w, for %v more", r.Host, compute.ErrVersionsNotKnown, wait.Round(time.Second))
	}
	if err := members.Join(ctx, self); err != nil {
		return err
	}
	return s.Number(ctx, ComputeBinary, r.Host)
}

// LeaveHost ends the ownership of a host. It has no effect if the process does not own the host.
func (s *Store) LeaveHost(ctx context.Context, host, instance string) error {
	return s.members.Leave(ctx, ComputeBinary, host, instance)
}

// HoldsHost returns membership.ErrHeld if a process other than the instance owns the host. It returns nil if the
// instance owns the host, or if the host is not known. With the context of [Store.Tx] it reads in that transaction.
func (s *Store) HoldsHost(ctx context.Context, host, instance string) error {
	return s.members.Holds(ctx, ComputeBinary, host, instance)
}

// ReportHost records the heartbeat of a compute service and the resources of its host. A report that changes nothing
// costs one read and the heartbeat. Errors: Invalid if the report is not valid; membership.ErrHeld if the process does not
// own the host. After Invalid no host has been added; after ErrHeld nothing has changed.
func (s *Store) ReportHost(ctx context.Context, r *compute.HostReport, ratios Ratios) error {
	if err := checkReport(r); err != nil {
		return err
	}
	if s.reports.isKnown(ctx, s.claims, r, ratios) {
		err := s.members.Heartbeat(ctx, ComputeBinary, r.Host, r.Instance)
		if !errors.Is(err, fault.NotFound) && !errors.Is(err, membership.ErrHeld) { // these errors are handled below
			return err
		}
	}
	err := s.HoldsHost(ctx, r.Host, r.Instance)
	if r.Instance == "" && errors.Is(err, membership.ErrHeld) {
		err = s.joinReporter(ctx, r) // a compute service of an older release claims no host; it becomes the owner here when the old owner is down
	}
	if err != nil {
		return err
	}
	generation, err := s.putHost(ctx, r, ratios) // before the heartbeat, because putHost validates the report
	if err != nil {
		return err
	}
	err = s.members.Heartbeat(ctx, ComputeBinary, r.Host, r.Instance)
	if errors.Is(err, fault.NotFound) { // the service is new, or an operator has removed it
		if err = s.joinReporter(ctx, r); err == nil {
			err = s.Number(ctx, ComputeBinary, r.Host)
		}
	} else if err == nil {
		err = s.recordVersions(ctx, r)
	}
	if err != nil {
		return err
	}
	if err = s.recordDriver(ctx, r); err == nil {
		s.reports.put(r, ratios, generation)
	}
	return err
}

// checkReport checks the host and the versions of a report. Errors: Invalid.
func checkReport(r *compute.HostReport) error {
	if err := rpc.CheckHost(r.Host); err != nil {
		return err
	}
	if err := checkVersions(r.Interfaces); err != nil {
		return fmt.Errorf("report of host %s: %w", r.Host, err)
	}
	return nil
}

// recordVersions records the versions of the interfaces that a compute service serves, if they are not known: a conductor of a release
// without versions has handled its claim.
func (s *Store) recordVersions(ctx context.Context, r *compute.HostReport) error {
	m, err := s.members.Get(ctx, ComputeBinary, r.Host)
	if err != nil || reflect.DeepEqual(m.Interfaces, r.Interfaces) {
		return err
	}
	return s.joinReporter(ctx, r)
}

// joinReporter makes the process that sent a report the owner of the report's host.
func (s *Store) joinReporter(ctx context.Context, r *compute.HostReport) error {
	instance := membership.Instance{ID: r.Instance}
	if r.Claim != nil && r.Claim.ID == r.Instance {
		instance = membership.Instance(*r.Claim)
	}
	return s.members.Join(ctx, membership.Self{Kind: ComputeBinary, Host: r.Host, Version: 1, Interfaces: r.Interfaces, Instance: instance})
}

// recordDriver records the driver of a host. A host that is new gets the next number.
func (s *Store) recordDriver(ctx context.Context, r *compute.HostReport) error {
	var capabilities *string // nil: not known
	if r.Capabilities != nil {
		raw, err := json.Marshal(r.Capabilities)
		if err != nil {
			return err
		}
		capabilities = new(string(raw))
	}
	return s.retryNumbering(ctx, func(ctx context.Context, tx *sqlx.Tx) error {
		n, err := db.Exec(ctx, tx, `UPDATE hosts SET driver = ?, driver_version = ?, capabilities = ? WHERE name = ?`, r.Driver, r.DriverVersion, capabilities, r.Host)
		if err != nil || n > 0 {
			return err
		}
		id, err := nextID(ctx, tx, `SELECT COALESCE(MAX(id), 0) + 1 FROM hosts`)
		if err != nil {
			return err
		}
		_, err = db.Exec(ctx, tx, `INSERT INTO hosts (id, name, driver, driver_version, capabilities) VALUES (?, ?, ?, ?, ?)`, id, r.Host, r.Driver, r.DriverVersion, capabilities)
		return err
	})
}

// reports caches, for each host, the last report that this process has written. A report that changes nothing then
// costs one read of a row and the heartbeat.
type reports struct {
	mu   sync.Mutex
	last map[string]report // by host
}

// report is a report that this process has written. The database has this content as long as the generation of the host's
// provider is the same.
type report struct {
	compute.HostReport

	ratios     Ratios
	generation int64
}

// isKnown reports whether the database already has the content of a report. It reads the provider's generation,
// because another process may have written a later report.
func (k *reports) isKnown(ctx context.Context, providers *placement.SQL, r *compute.HostReport, ratios Ratios) bool {
	k.mu.Lock()
	last, ok := k.last[r.Host]
	k.mu.Unlock()
	if !ok || !reflect.DeepEqual(last, report{*r, ratios, last.generation}) {
		return false
	}
	generation, err := providers.Generation(ctx, r.Host)
	return err == nil && generation == last.generation
}

func (k *reports) put(r *compute.HostReport, ratios Ratios, generation int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.last == nil {
		k.last = map[string]report{}
	}
	k.last[r.Host] = report{*r, ratios, generation}
}

// putHost validates a report, writes the resources of the host as the inventories of a provider, and returns the
// generation of the provider. Errors: Invalid.
func (s *Store) putHost(ctx context.Context, r *compute.HostReport, ratios Ratios) (int64, error) {
	for what, text := range map[string]string{"driver": r.Driver, "driver version": r.DriverVersion} {
		if len(text) > 255 || !utf8.ValidString(text) {
			return 0, fault.New(fault.Invalid, "host %s: the %s has more than 255 bytes, or is not UTF-8", r.Host, what)
		}
	}
	p := &placement.Provider{ID: r.Host, Generation: placement.Any, Inventories: map[string]placement.Inventory{}}
	ratio := map[string]float64{compute.VCPU: ratios.CPU, compute.MemoryMB: ratios.RAM, compute.DiskGB: ratios.Disk}
	for _, a := range r.Resources.Amounts() {
		p.Inventories[a.Class] = placement.Inventory{Total: int64(a.N), Ratio: ratio[a.Class]}
	}
	out, err := s.claims.Put(ctx, p)
	if err != nil {
		return 0, err
	}
	return out.Generation, nil
}

// Claims returns the store of the servers' claims on hosts. A claim is made only while the server waits for a host;
// otherwise it fails with [compute.ErrStale]. A claim and a deletion of one server never happen at the same time: both lock the
// server's operation.
func (s *Store) Claims() placement.Store { return claims{s.claims, s} }

type claims struct {
	*placement.SQL

	store *Store
}

func (c claims) Claim(ctx context.Context, list ...placement.Claim) error {
	return db.Tx(ctx, c.store.db, func(ctx context.Context, tx *sqlx.Tx) error {
		for _, claim := range list {
			op, err := c.store.ops.Lock(ctx, tx, claim.Consumer)
			switch {
			case errors.Is(err, fault.NotFound):
				return compute.ErrStale
			case err != nil:
				return err
			case !schedules(op.Kind) || op.State != operation.Running || op.StepName != StepSchedule && op.StepName != "":
				return compute.ErrStale
			}
		}
		return c.ClaimTx(ctx, tx, list...)
	})
}

// schedules reports whether an operation of a kind chooses a host for the server.
func schedules(kind string) bool {
	return kind == Create.Name || compute.Action(strings.TrimPrefix(kind, kindPrefix)).Info().Schedules
}

// ReleaseClaim releases a server's claim, if it has one.
func (s *Store) ReleaseClaim(ctx context.Context, id string) error {
	return db.Tx(ctx, s.db, func(ctx context.Context, tx *sqlx.Tx) error { return s.release(ctx, tx, id) })
}

// release drops a server's claim, if it has one.
func (s *Store) release(ctx context.Context, tx *sqlx.Tx, serverID string) error {
	return s.claims.ClaimTx(ctx, tx, placement.Claim{Consumer: serverID, Generation: placement.Any})
}
