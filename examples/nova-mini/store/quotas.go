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

// Names of limits, as in Nova.
const (
	Cores        = "cores"                // virtual CPUs of a project
	Instances    = "instances"            // servers of a project
	RAM          = "ram"                  // memory of a project, in MiB
	Metadata     = "metadata_items"       // metadata items of a server
	KeyPairs     = "key_pairs"            // key pairs of a user
	ServerGroups = "server_groups"        // server groups of a project
	GroupMembers = "server_group_members" // servers of a server group

	InjectedFiles    = "injected_files"              // files for a guest
	FileContentBytes = "injected_file_content_bytes" // bytes of one of these files
	FilePathLength   = "injected_file_path_bytes"    // bytes of the path of one
)

// Limits are the highest amounts by name. A name that is missing, and the amount -1, mean no limit.
type Limits map[string]int64

// Of returns a limit, or -1.
func (l Limits) Of(name string) int64 {
	if n, ok := l[name]; ok {
		return n
	}
	return quota.Unlimited
}

// of returns a store of usage with some of the limits.
func (l Limits) of(d *sqlx.DB, names ...string) *quota.Store {
	classes := map[string]int64{}
	for _, name := range names {
		classes[name] = l.Of(name)
	}
	return quota.New(quota.Config{DB: d, Limits: classes})
}

// Limits returns the limits with which the store was made.
func (s *Store) Limits() Limits { return s.limits }

// Usage returns what a project uses, by the names of limits.
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

// quotaClaim is what a server counts in the quota of its project while it has these resources.
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

// tooMany is overQuota for servers of which not even the least number fits. As in Nova, the text has the least and the highest number of servers, and
// what the highest number needs of the rest.
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

// room returns how many servers like one its project may still create.
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

// RepairQuotas makes the quotas count exactly the servers that exist: a conductor of the last release removes servers without their quota, and its
// API creates them without. It returns how many servers it has counted or no longer counts. All services may run meanwhile.
func (s *Store) RepairQuotas(ctx context.Context) (changed int, err error) {
	consumers, err := s.counted.Consumers(ctx)
	if err != nil {
		return 0, err
	}
	var ids []string // after the claims: a server and its claim are added in one transaction
	if err := s.db.SelectContext(ctx, &ids, `SELECT id FROM servers`); err != nil {
		return 0, db.Error(err)
	}
	exists, counted := map[string]bool{}, map[string]bool{}
	for _, id := range ids {
		exists[id] = true
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
	return changed, errors.Join(errs...)
}

// repairQuota counts a server if it exists, and no longer counts it if it does not.
func (s *Store) repairQuota(ctx context.Context, id string) error {
	return s.tx(ctx, func(ctx context.Context, tx *sqlx.Tx, _ time.Time) error {
		srv, err := s.lockServer(ctx, tx, id)
		switch {
		case errors.Is(err, fault.NotFound):
			return s.counted.Release(ctx, tx, id)
		case err != nil:
			return err
		}
		return s.counted.Reserve(ctx, tx, srv.quotaClaim(srv.Holds()))
	})
}
