package store

import (
	"context"
	"errors"
	"maps"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/quota"
)

// The names of limits, as in Nova.
const (
	Cores        = "cores"                // virtual CPUs of a project
	Instances    = "instances"            // servers of a project
	RAM          = "ram"                  // memory of a project, in MiB
	Metadata     = "metadata_items"       // metadata items of a server
	KeyPairs     = "key_pairs"            // key pairs of a user
	ServerGroups = "server_groups"        // server groups of a project
	GroupMembers = "server_group_members" // servers of a user in a server group

	InjectedFiles    = "injected_files"              // files for a guest
	FileContentBytes = "injected_file_content_bytes" // bytes of one of these files
	FilePathLength   = "injected_file_path_bytes"    // bytes of the path of one of these files
)

// Limits are the maximum amounts, by name. A missing name and the amount -1 mean no limit.
type Limits map[string]int64

// Of returns a limit, or -1 if there is no limit.
func (l Limits) Of(name string) int64 {
	if n, ok := l[name]; ok {
		return n
	}
	return quota.Unlimited
}

// of returns a quota store for the named limits.
func (l Limits) of(d *sqlx.DB, names ...string) *quota.Store {
	classes := map[string]int64{}
	for _, name := range names {
		classes[name] = l.Of(name)
	}
	return quota.New(quota.Config{DB: d, Limits: classes})
}

// Limits returns the limits with which the store was made.
func (s *Store) Limits() Limits { return s.limits }

// Usage returns the amounts that a project uses, by the names of limits.
func (s *Store) Usage(ctx context.Context, project string) (map[string]int64, error) {
	out := map[string]int64{}
	for _, q := range []*quota.Store{s.quotas, s.groups} {
		list, err := q.Usage(ctx, project)
		if err != nil {
			return nil, err
		}
		for _, u := range list {
			out[u.Class] = u.Used
		}
	}
	return out, nil
}

// quotaClaim returns the amounts that a server with these resources uses of its project's quota.
func (s *Server) quotaClaim(has compute.Resources) quota.Claim {
	return quota.Claim{Consumer: s.ID, Project: s.ProjectID, Amounts: map[string]int64{Instances: 1, Cores: int64(has.VCPUs), RAM: int64(has.MemoryMiB)}}
}

// overQuota replaces quota.ErrExceeded by Denied, with Nova's text.
func overQuota(err error) error {
	if !errors.Is(err, quota.ErrExceeded) {
		return err
	}
	return quotaText(fault.From(err).Meta)
}

// quotaText returns Nova's error with the figures of quota.ErrExceeded.
func quotaText(m map[string]string) error {
	return fault.New(fault.Denied, "Quota exceeded for %s: Requested %s, but already used %s of %s %s", m["class"], m["requested"], m["used"], m["limit"], m["class"])
}

// tooMany returns Nova's error for a request of which not even the Least servers fit into the quota. As in Nova, the text gives the requested
// number of servers as a range, such as 2-5, if Least and Most differ. For other limits the text gives the amounts that Most servers need.
func tooMany(err error, of NewServers, one *Server) error {
	m := maps.Clone(fault.From(err).Meta)
	amounts := one.quotaClaim(one.Need()).Amounts
	var requested []string
	for class := range strings.SplitSeq(m["class"], ", ") {
		text := strconv.FormatInt(amounts[class]*int64(of.Most), 10)
		if class == Instances && of.Least < of.Most {
			text = strconv.Itoa(of.Least) + "-" + text
		}
		requested = append(requested, text)
	}
	m["requested"] = strings.Join(requested, ", ")
	return quotaText(m)
}

// room returns the number of further servers that a project may create. The parameter named one is an example of these servers, with their project and their size.
func (s *Store) room(ctx context.Context, one *Server) (int, error) {
	used, err := s.quotas.Usage(ctx, one.ProjectID)
	if err != nil {
		return 0, err
	}
	amounts, room := one.quotaClaim(one.Need()).Amounts, int64(math.MaxInt)
	for _, u := range used {
		if n := amounts[u.Class]; n > 0 && u.Limit != quota.Unlimited {
			room = min(room, max(0, u.Limit-u.Used)/n)
		}
	}
	return int(room), nil
}

// RepairQuotas makes the quotas count exactly the existing servers that are not soft-deleted. This is needed because services of the
// previous release do not update the quotas when they create or remove servers. RepairQuotas also repairs sums that differ from their parts,
// for example after an edit by hand. It returns the number of servers for which it has changed the quota, and the sums that were wrong. All
// services may run meanwhile.
func (s *Store) RepairQuotas(ctx context.Context) (changed int, sums []quota.Repaired, err error) {
	if sums, err = s.counted.Repair(ctx); err != nil {
		return 0, sums, err
	}
	consumers, err := s.counted.Consumers(ctx)
	if err != nil {
		return 0, sums, err
	}
	var servers []struct { // read after the consumers, because a server and its use of the quota are added in one transaction
		ID      string `db:"id"`
		VMState string `db:"vm_state"`
	}
	if err := s.db.SelectContext(ctx, &servers, `SELECT id, vm_state FROM servers`); err != nil {
		return 0, sums, db.Error(err)
	}
	var ids []string
	exists, counted := map[string]bool{}, map[string]bool{}
	for _, srv := range servers {
		exists[srv.ID] = true
		counted[srv.ID] = srv.VMState == compute.VMSoftDeleted // treated as correct: a soft-deleted server counts only while it is being restored
		ids = append(ids, srv.ID)
	}
	for _, id := range consumers {
		counted[id] = true
		ids = append(ids, id)
	}
	var errs []error
	for _, id := range ids {
		if exists[id] && counted[id] {
			continue
		}
		if err := s.repairQuota(ctx, id); err != nil {
			errs = append(errs, err)
			continue
		}
		changed++
	}
	return changed, sums, errors.Join(errs...)
}

// repairQuota makes the quota count a server that exists, and not count a server that does not exist.
func (s *Store) repairQuota(ctx context.Context, id string) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, _ time.Time) error {
		srv, err := s.lockServer(ctx, tx, id)
		switch {
		case errors.Is(err, fault.NotFound):
			return s.counted.Release(ctx, tx, id)
		case err != nil:
			return err
		}
		if srv.VMState == compute.VMSoftDeleted {
			return nil
		}
		return s.counted.Reserve(ctx, tx, srv.quotaClaim(srv.Holds()))
	})
}
