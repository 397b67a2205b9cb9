package placement_test

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db/dbtest"
	"github.com/armature-go/armature/internal/compare"
	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/scheduler/placement"
)

// cloud returns hosts that are half full on average.
func cloud(n int) []*provider {
	r := rand.New(rand.NewPCG(1, 2))
	out := make([]*provider, n)
	zones := []string{"az1", "az2", "az3"}
	for i := range out {
		p := &provider{
			ID: fmt.Sprintf("node-%06d", i), Zone: zones[r.IntN(3)], SeenAt: time.Now().Add(time.Hour), Tasks: r.Int64N(8), Consumers: r.Int64N(40),
			Traits: []string{"COMPUTE_NODE", "HW_CPU_X86_AVX", "HW_CPU_X86_SSE42", "STORAGE_DISK_SSD"},
			Inventories: map[string]placement.Inventory{
				"VCPU": {Total: 64, Ratio: 4, Used: r.Int64N(256)}, "MEMORY_MB": {Total: 512 << 10, Reserved: 512, Used: r.Int64N(500 << 10)},
				"DISK_GB": {Total: 8 << 10, Used: r.Int64N(8 << 10)},
			},
		}
		if r.IntN(2) == 0 {
			p.Traits = slices.Delete(p.Traits, 1, 2)
		}
		if r.IntN(50) == 0 {
			p.Disabled = "out of service"
		}
		out[i] = p
	}
	return out
}

var (
	common    = &request{Resources: placement.Resources{"VCPU": 1, "MEMORY_MB": 1024, "DISK_GB": 1}, Required: []string{"COMPUTE_NODE"}}
	selective = &request{
		Resources: placement.Resources{"VCPU": 60, "MEMORY_MB": 128 << 10, "DISK_GB": 1024}, Zone: "az2",
		Required: []string{"HW_CPU_X86_AVX", "STORAGE_DISK_SSD"},
	}
	spread = &request{
		Resources: placement.Resources{"VCPU": 60, "MEMORY_MB": 128 << 10, "DISK_GB": 1024},
		Required:  []string{"HW_CPU_X86_AVX", "STORAGE_DISK_SSD"},
	}
)

// benchConfig has eight filters and four weighers.
func benchConfig(t testing.TB, countsOnly bool) scheduler.Config[*request, *provider] {
	t.Helper()
	f, err := scheduler.ByName(filters(placement.Options{}), []string{"disabled", "zone", "VCPU", "MEMORY_MB", "DISK_GB", "traits", "tasks", "consumers"})
	if err != nil {
		t.Fatal(err)
	}
	w, err := scheduler.ByName(placement.Weighers[*request, *provider](placement.Options{}), []string{"ram", "cpu", "disk", "io_ops"})
	if err != nil {
		t.Fatal(err)
	}
	return scheduler.Config[*request, *provider]{Filters: f, Weighers: w, CountsOnly: countsOnly}
}

type scored struct {
	p     *provider
	at    int
	total float64
	raw   [4]float64
}

// free is Inventory.Free without a copy of the Inventory, which would cost time.
func free(i *placement.Inventory) int64 {
	n := i.Total - i.Reserved
	if i.Ratio != 0 && i.Ratio != 1 {
		n = int64(math.Floor(float64(n) * i.Ratio))
	}
	return n - i.Used
}

// byHand is a hand-written scheduler for this one purpose.
func byHand(q *request, hosts []*provider) []scored {
	out := make([]scored, 0, 1024)
	vcpus, mem, gib := q.Resources["VCPU"], q.Resources["MEMORY_MB"], q.Resources["DISK_GB"]
	var low, high [4]float64
next:
	for _, p := range hosts {
		if p.Disabled != "" || q.Zone != "" && q.Zone != p.Zone {
			continue
		}
		vcpu := p.Inventories["VCPU"]
		cpuFree := free(&vcpu)
		if vcpus > cpuFree {
			continue
		}
		ram := p.Inventories["MEMORY_MB"]
		ramFree := free(&ram)
		if mem > ramFree {
			continue
		}
		disk := p.Inventories["DISK_GB"]
		diskFree := free(&disk)
		if gib > diskFree {
			continue
		}
		for _, t := range q.Required {
			if !p.Has(t) {
				continue next
			}
		}
		if p.Tasks >= 8 || p.Consumers >= 50 {
			continue
		}
		s := scored{p: p, at: len(out), raw: [4]float64{float64(ramFree), float64(cpuFree), float64(diskFree), float64(p.Tasks)}}
		for j, x := range s.raw {
			if len(out) == 0 || x < low[j] {
				low[j] = x
			}
			if len(out) == 0 || x > high[j] {
				high[j] = x
			}
		}
		out = append(out, s)
	}
	mult := [4]float64{1, 1, 1, -1}
	for i := range out {
		for j, x := range out[i].raw {
			if high[j] > low[j] {
				out[i].total += mult[j] * ((x - low[j]) / (high[j] - low[j]))
			}
		}
	}
	slices.SortFunc(out, func(a, b scored) int { return cmp.Or(cmp.Compare(b.total, a.total), cmp.Compare(a.at, b.at)) })
	return out
}

// TestByHand: both sides of the benchmark have the same result.
func TestByHand(t *testing.T) {
	t.Parallel()
	hosts := cloud(2000)
	for _, q := range []*request{common, spread, selective} {
		s, err := scheduler.New(benchConfig(t, false))
		if err != nil {
			t.Fatal(err)
		}
		d, err := s.Rank(t.Context(), q, hosts)
		if err != nil {
			t.Fatal(err)
		}
		want := byHand(q, hosts)
		if len(want) != len(d.Ranked) || len(want) < 2 {
			t.Fatalf("%d by hand, %d by Rank", len(want), len(d.Ranked))
		}
		for i, w := range want {
			if r := d.Ranked[i]; r.Host != w.p || r.Total != w.total {
				t.Fatalf("place %d: %s %g, by hand %s %g", i, r.Host.ID, r.Total, w.p.ID, w.total)
			}
		}
	}
}

// BenchmarkCompare compares decisions with a hand-written loop over the same
// hosts, and claims with the two statements that every claim needs, in interleaved
// rounds of one run. It ignores -benchtime. The flags -rounds and -slice, after
// -args, set the duration.
func BenchmarkCompare(b *testing.B) {
	table := compare.New()
	b.Run("rank", func(b *testing.B) {
		for _, n := range []int{1_000, 10_000, 100_000} {
			hosts := cloud(n)
			for _, c := range []struct {
				name string
				q    *request
			}{{"most pass", common}, {"every filter rejects some", spread}, {"the first filters reject most", selective}} {
				list := []compare.Contender{{Name: "loop by hand", Op: func() { byHand(c.q, hosts) }}}
				for _, e := range []struct {
					name       string
					countsOnly bool
				}{{"Rank, counts only", true}, {"Rank", false}} {
					s, err := scheduler.New(benchConfig(b, e.countsOnly))
					if err != nil {
						b.Fatal(err)
					}
					list = append(list, compare.Contender{Name: e.name, Op: func() {
						if _, err := s.Rank(b.Context(), c.q, hosts); err != nil {
							b.Error(err)
						}
					}})
				}
				table.Row(fmt.Sprintf("%d hosts, 8 filters and 4 weighers, %s", n, c.name), 1, list...)
			}
		}
	})
	b.Run("claim", func(b *testing.B) {
		d := open(b, dbtest.MySQL(b))
		store := placement.NewSQL(d)
		const hosts = 200
		for i := range hosts {
			if _, err := store.Put(b.Context(), &provider{ID: fmt.Sprintf("n%03d", i), Inventories: map[string]placement.Inventory{
				"VCPU": {Total: 1 << 40}, "MEMORY_MB": {Total: 1 << 40},
			}}); err != nil {
				b.Fatal(err)
			}
		}
		for _, q := range []string{
			`CREATE TABLE bare_hosts (id VARCHAR(255) NOT NULL PRIMARY KEY, capacity BIGINT NOT NULL, used BIGINT NOT NULL)`,
			`CREATE TABLE bare_claims (consumer VARCHAR(255) NOT NULL PRIMARY KEY, host VARCHAR(255) NOT NULL, amount BIGINT NOT NULL)`,
			`INSERT INTO bare_hosts SELECT id, 1 << 40, 0 FROM placement_providers`,
		} {
			if _, err := d.ExecContext(b.Context(), q); err != nil {
				b.Fatal(err)
			}
		}
		var n atomic.Int64
		claim := func(r placement.Resources) func() {
			return func() {
				i := n.Add(1)
				if err := store.Claim(b.Context(), placement.Claim{Consumer: "c" + strconv.FormatInt(i, 10), Allocations: []placement.Allocation{
					{Provider: fmt.Sprintf("n%03d", rand.IntN(hosts)), Resources: r},
				}}); err != nil {
					b.Error(err)
				}
			}
		}
		table.Row("claim on MariaDB, 200 hosts", 16,
			compare.Contender{Name: "UPDATE, INSERT", Op: func() {
				if err := bare(b.Context(), d, "c"+strconv.FormatInt(n.Add(1), 10), fmt.Sprintf("n%03d", rand.IntN(hosts))); err != nil {
					b.Error(err)
				}
			}},
			compare.Contender{Name: "Store.Claim of one class", Op: claim(placement.Resources{"VCPU": 1})},
			compare.Contender{Name: "Store.Claim of two classes", Op: claim(placement.Resources{"VCPU": 1, "MEMORY_MB": 512})})
	})
}

// bare is a transaction of the two statements that every claim needs.
func bare(ctx context.Context, d *sqlx.DB, consumer, host string) error {
	tx, err := d.BeginTxx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // no effect after COMMIT
	res, err := tx.ExecContext(ctx, `UPDATE bare_hosts SET used = used + ? WHERE id = ? AND used + ? <= capacity`, 1, host, 1)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); n != 1 {
		return fmt.Errorf("%s: %d rows, %w", host, n, err)
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO bare_claims (consumer, host, amount) VALUES (?, ?, ?)`, consumer, host, 1); err != nil {
		return err
	}
	return tx.Commit()
}
