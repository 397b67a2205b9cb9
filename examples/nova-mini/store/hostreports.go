package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/rpc"
	"github.com/armature-go/armature/scheduler/placement"
	"github.com/armature-go/armature/service/membership"
)

// checkVersions checks the interface versions that a compute service reports. Errors: Invalid. The version caps of all RPC clients
// depend on these versions. So all clients would be blocked by a report about the interface of another service, or by a report
// without a version that clients can use.
func checkVersions(interfaces map[string][]string) error {
	oldest := compute.Worker
	for oldest.Older != nil {
		oldest = oldest.Older
	}
	for name, list := range interfaces {
		if name != oldest.Name {
			return fault.New(fault.Invalid, "the process reports versions of the interface %s, but a compute service serves only %s", strconv.QuoteToASCII(name), oldest.Name)
		}
		if !slices.ContainsFunc(list, func(text string) bool {
			var v rpc.Version
			return v.UnmarshalText([]byte(text)) == nil && v.Major >= oldest.Version.Major && v.Major <= compute.Worker.Version.Major
		}) {
			return fault.New(fault.Invalid, "the process reports no version of the interface %s that RPC clients can use: %q has no version MAJOR.MINOR with a major version from %d to %d; if the compute service is of a later release, upgrade the conductors first",
				name, list, oldest.Version.Major, compute.Worker.Version.Major)
		}
	}
	return nil
}

// ClaimHost makes a process the owner of a host: the only process that does the work of the host. Errors: Invalid if the host's
// name is not valid, the process has no id, or clients cannot use the versions of the process; membership.ErrHeld if another process
// owns the host and has sent a heartbeat within downAfter; Unavailable with the reason VersionsNotKnown if the process must wait
// before it serves, see membership.Registry.ServeDelay. After the wait the process calls ClaimHost again.
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
// instance owns the host, or if the database does not have the host. With the context of [Store.Tx] it reads in that
// transaction.
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
		err = s.joinReporter(ctx, r) // a compute service of an older release makes no claim; by its report it becomes the owner, if the previous owner is down
	}
	if err != nil {
		return err
	}
	generation, err := s.putHost(ctx, r, ratios) // before the heartbeat, because putHost validates the report
	if err != nil {
		return err
	}
	err = s.members.Heartbeat(ctx, ComputeBinary, r.Host, r.Instance)
	if errors.Is(err, fault.NotFound) { // the service is new, or an operator has removed the service
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

// recordVersions records the interface versions that a compute service serves, if the database has none or other ones. The database
// has none if a conductor of an earlier release, which does not store versions, has handled the claim of the host.
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

// recordDriver records the driver of a host. A new host gets the next number.
func (s *Store) recordDriver(ctx context.Context, r *compute.HostReport) error {
	var capabilities *string // nil: the compute service does not report them
	if r.Capabilities != nil {
		raw, err := json.Marshal(r.Capabilities)
		if err != nil {
			return err
		}
		capabilities = new(string(raw))
	}
	var zone *string // nil: the default one
	if r.Zone != "" {
		zone = &r.Zone
	}
	var ip *string // nil: not known
	if r.IP != "" {
		ip = &r.IP
	}
	return s.retryNumbering(ctx, func(ctx context.Context, tx *sqlx.Tx) error {
		n, err := db.Exec(ctx, tx, `UPDATE hosts SET driver = ?, driver_version = ?, capabilities = ?, zone = ?, ip = ? WHERE name = ?`, r.Driver, r.DriverVersion, capabilities, zone, ip, r.Host)
		if err != nil || n > 0 {
			return err
		}
		id, err := nextID(ctx, tx, `SELECT COALESCE(MAX(id), 0) + 1 FROM hosts`)
		if err != nil {
			return err
		}
		_, err = db.Exec(ctx, tx, `INSERT INTO hosts (id, name, driver, driver_version, capabilities, zone, ip) VALUES (?, ?, ?, ?, ?, ?, ?)`, id, r.Host, r.Driver, r.DriverVersion, capabilities, zone, ip)
		return err
	})
}

// reports is a cache of the last report of each host that this process has written. With the cache, a report that changes
// nothing costs only one read of a row and the heartbeat.
type reports struct {
	mu   sync.Mutex
	last map[string]report // the key is the host
}

// report is an entry of the cache. The database still has the content of the entry if the generation of the host's provider has not changed.
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
	for what, text := range map[string]string{"driver": r.Driver, "driver version": r.DriverVersion, "availability zone": r.Zone} {
		if len(text) > 255 || !utf8.ValidString(text) {
			return 0, fault.New(fault.Invalid, "host %s: the %s has more than 255 bytes, or is not UTF-8", r.Host, what)
		}
	}
	if r.IP != "" && net.ParseIP(r.IP).To4() == nil {
		return 0, fault.New(fault.Invalid, "host %s: %s is not an IPv4 address", r.Host, strconv.QuoteToASCII(r.IP))
	}
	p := &placement.Provider{ID: r.Host, Zone: r.Zone, Generation: placement.Any, Inventories: map[string]placement.Inventory{}}
	for _, f := range r.Platforms {
		p.Platforms = append(p.Platforms, placement.Platform(f))
	}
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
