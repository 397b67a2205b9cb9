package placement_test

import (
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/armature-go/armature/scheduler"
	"github.com/armature-go/armature/scheduler/placement"
)

type (
	request  = placement.Request
	provider = placement.Provider
	group    = placement.Group
)

func filters(o placement.Options) []scheduler.Filter[*request, *provider] {
	return placement.Filters[*request, *provider](o)
}

func inventory(class string, i placement.Inventory) map[string]placement.Inventory {
	return map[string]placement.Inventory{class: i}
}

func aggregate(kv ...string) *placement.Aggregate {
	a := &placement.Aggregate{Metadata: map[string]string{}}
	for i := 0; i < len(kv); i += 2 {
		a.Metadata[kv[i]] = kv[i+1]
	}
	return a
}

// TestFilters: each filter has the right verdict on one host. An empty reason means that the host passes.
func TestFilters(t *testing.T) {
	t.Parallel()
	now := time.Now()
	in := func(a ...*placement.Aggregate) provider { return provider{Aggregates: a} }
	has := func(class string, i placement.Inventory) provider { return provider{Inventories: inventory(class, i)} }
	want := func(class string, n int64) request { return request{Resources: placement.Resources{class: n}} }
	tests := []struct {
		filter string
		q      request
		p      provider
		reason string
	}{
		{"forced", request{}, provider{ID: "n1"}, ""},
		{"forced", request{Force: []string{"N1"}}, provider{ID: "n1"}, ""},
		{"forced", request{Force: []string{"n2"}}, provider{ID: "n1"}, "not one of the hosts that the request forces"},
		{"ignored", request{Ignore: []string{"n2"}}, provider{ID: "n1"}, ""},
		{"ignored", request{Ignore: []string{"N1"}}, provider{ID: "n1"}, "the request ignores this host"},
		{"disabled", request{}, provider{}, ""},
		{"disabled", request{}, provider{Disabled: "disk 95% full"}, "disk 95% full"},
		{"down", request{}, provider{}, ""},
		{"down", request{}, provider{SeenAt: now.Add(-50 * time.Second)}, ""},
		{"down", request{}, provider{SeenAt: now.Add(-75*time.Second - time.Second/2)}, "no heartbeat for 75 s, down after 60 s"},
		{"down", request{}, provider{SeenAt: now.Add(50 * time.Second)}, ""},
		{"down", request{}, provider{SeenAt: now.Add(76 * time.Second)}, "the last heartbeat is 75 s in the future, at most 60 s are allowed"},
		{"zone", request{}, provider{Zone: "a"}, ""},
		{"zone", request{Zone: "a"}, provider{Zone: "a"}, ""},
		{"zone", request{Zone: "a"}, provider{Zone: "b"}, "not in zone a"},

		{"VCPU", request{}, provider{}, ""},
		{"VCPU", want("VCPU", 4), provider{}, "the host has none"},
		{"VCPU", want("VCPU", 4), has("VCPU", placement.Inventory{Total: 10, Reserved: 2, Used: 4}), ""},
		{"VCPU", want("VCPU", 4), has("VCPU", placement.Inventory{Total: 10, Reserved: 2, Used: 5}), "needs 4, 3 free"},
		{"VCPU", want("VCPU", 4), has("VCPU", placement.Inventory{Total: 3, Ratio: 1.5}), ""},
		{"VCPU", want("VCPU", 5), has("VCPU", placement.Inventory{Total: 3, Ratio: 1.5}), "needs 5, 4 free"},
		{"VCPU", want("VCPU", 1), has("VCPU", placement.Inventory{Total: 3, Used: 9}), "needs 1, -6 free"},
		{"VCPU", want("VCPU", 1), has("VCPU", placement.Inventory{Total: 30, Min: 2}), "needs 1, at least 2 for each consumer"},
		{"VCPU", want("VCPU", 9), has("VCPU", placement.Inventory{Total: 30, Max: 8}), "needs 9, at most 8 for each consumer"},
		{"VCPU", want("VCPU", 9), has("VCPU", placement.Inventory{Total: 30, Step: 4}), "needs 9, not a multiple of 4"},
		{"VCPU", want("VCPU", 8), has("VCPU", placement.Inventory{Total: 30, Min: 8, Max: 8, Step: 4}), ""},
		{"MEMORY_MB", want("MEMORY_MB", 2048), has("MEMORY_MB", placement.Inventory{Total: 512}), "needs 2048 MiB, 512 MiB free"},
		{"DISK_GB", want("DISK_GB", 20), has("DISK_GB", placement.Inventory{Total: 5}), "needs 20 GiB, 5 GiB free"},
		{"resources", want("VCPU", 4), provider{}, ""},
		{"resources", want("CUSTOM_X", 4), provider{}, "has no CUSTOM_X"},
		{"resources", want("CUSTOM_X", 4), has("CUSTOM_X", placement.Inventory{Total: 3}), "CUSTOM_X: needs 4, 3 free"},
		{"resources", want("CUSTOM_X", 4), has("CUSTOM_X", placement.Inventory{Total: 4}), ""},
		{"resources", want("CUSTOM_X", 4), has("CUSTOM_X", placement.Inventory{Total: 9, Max: 2}), "CUSTOM_X: needs 4, at most 2 for each consumer"},

		{"traits", request{Required: []string{"A"}}, provider{Traits: []string{"A", "B"}}, ""},
		{"traits", request{Required: []string{"B", "C"}}, provider{Traits: []string{"A", "B"}}, "trait C is missing"},
		{"traits", request{Forbidden: []string{"B"}}, provider{Traits: []string{"A", "B"}}, "trait B is forbidden"},
		{"traits", request{Forbidden: []string{"C"}}, provider{Traits: []string{"A", "B"}}, ""},
		{"platform", request{}, provider{}, ""},
		{"platform", request{Platform: placement.Platform{Arch: "arm64"}}, provider{}, "cannot run arm64"},
		{"platform", request{Platform: placement.Platform{Arch: "x86_64", Mode: "hvm"}}, provider{Platforms: []placement.Platform{{"i686", "qemu", "hvm"}, {"x86_64", "qemu", "hvm"}}}, ""},
		{"platform", request{Platform: placement.Platform{Arch: "x86_64", Type: "xen"}}, provider{Platforms: []placement.Platform{{"x86_64", "qemu", "hvm"}, {"i686", "xen", "hvm"}}}, "cannot run x86_64 xen"},

		{"capabilities", request{Specs: map[string]string{"capabilities:cpu": ">= 4"}}, provider{Capabilities: map[string]string{"cpu": "4"}}, ""},
		{"capabilities", request{Specs: map[string]string{"capabilities:cpu": ">= 4"}}, provider{Capabilities: map[string]string{"cpu": "3"}}, "cpu is not >= 4"},
		{"capabilities", request{Specs: map[string]string{"cpu": "x"}}, provider{}, "has no cpu"},
		{"capabilities", request{Specs: map[string]string{"hw:cpu": "x"}}, provider{}, ""},
		{"aggregate_specs", request{Specs: map[string]string{"aggregate_instance_extra_specs:ssd": "true"}}, in(aggregate("ssd", "true")), ""},
		{"aggregate_specs", request{Specs: map[string]string{"aggregate_instance_extra_specs:ssd": "true"}}, in(aggregate("ssd", "false"), aggregate("ssd", "no, true")), ""},
		{"aggregate_specs", request{Specs: map[string]string{"ssd": "true"}}, in(aggregate("ssd", "false")), "ssd is not true"},
		{"aggregate_specs", request{Specs: map[string]string{"ssd": "true"}}, provider{}, "has no ssd"},
		{"aggregate_specs", request{Specs: map[string]string{"capabilities:ssd": "true"}}, provider{}, ""},

		{"aggregate_tenant", request{Tenant: "t1"}, provider{}, ""},
		{"aggregate_tenant", request{Tenant: "t1"}, in(aggregate("filter_tenant_id", "t2, t1")), ""},
		{"aggregate_tenant", request{Tenant: "t1"}, in(aggregate("filter_tenant_id", "t2"), aggregate("filter_tenant_id_7", "t1")), ""},
		{"aggregate_tenant", request{Tenant: "t1"}, in(aggregate("filter_tenant_id", "t2"), aggregate("x", "t1")), "only for other tenants"},
		{"aggregate_tenant", request{}, in(aggregate("filter_tenant_id", "t2")), "only for other tenants"},
		{"aggregate_type", request{Type: "big"}, in(aggregate("instance_type", "small,big")), ""},
		{"aggregate_type", request{Type: "big"}, in(aggregate("instance_type", "small")), "not for big"},
		{"aggregate_type", request{Type: "big"}, in(aggregate("x", "y")), ""},
		{"aggregate_properties", request{Properties: map[string]string{"os": "bsd"}}, in(aggregate("os", "linux, bsd")), ""},
		{"aggregate_properties", request{Properties: map[string]string{"os": "bsd"}}, in(aggregate("os", "linux")), "not for os = bsd"},
		{"aggregate_properties", request{Properties: map[string]string{"arch": "arm"}}, in(aggregate("os", "linux")), ""},

		{"same_host", request{SameAs: []string{"n1", "n2"}}, provider{ID: "n2"}, ""},
		{"same_host", request{SameAs: []string{"n1"}}, provider{ID: "n2"}, "not one of the hosts that the request must share"},
		{"different_host", request{NotWith: []string{"n1"}}, provider{ID: "n2"}, ""},
		{"different_host", request{NotWith: []string{"n2"}}, provider{ID: "n2"}, "has a consumer that the request must not share a host with"},
		{"affinity", request{Group: &group{ID: "g", Policy: placement.Affinity}}, provider{ID: "n1"}, ""},
		{"affinity", request{Group: &group{ID: "g", Policy: placement.Affinity, Members: map[string]int64{"n1": 1}}}, provider{ID: "n1"}, ""},
		{"affinity", request{Group: &group{ID: "g", Policy: placement.Affinity, Members: map[string]int64{"n2": 1}}}, provider{ID: "n1"}, "the group is on another host"},
		{"affinity", request{Group: &group{ID: "g", Policy: placement.SoftAffinity, Members: map[string]int64{"n2": 1}}}, provider{ID: "n1"}, ""},
		{"anti_affinity", request{Group: &group{ID: "g", Policy: placement.AntiAffinity, Members: map[string]int64{"n2": 1}}}, provider{ID: "n1"}, ""},
		{"anti_affinity", request{Group: &group{ID: "g", Policy: placement.AntiAffinity, Members: map[string]int64{"n1": 1}}}, provider{ID: "n1"}, "has 1 of the group, at most 1"},
		{"anti_affinity", request{Group: &group{ID: "g", Policy: placement.AntiAffinity, MaxPerHost: 2}}, provider{Members: map[string]int64{"g": 1}}, ""},
		{"anti_affinity", request{Group: &group{ID: "g", Policy: placement.AntiAffinity, MaxPerHost: 2}}, provider{Members: map[string]int64{"g": 2}}, "has 2 of the group, at most 2"},

		{"tasks", request{}, provider{Tasks: 7}, ""},
		{"tasks", request{}, provider{Tasks: 8}, "8 operations with much I/O run, the limit is 8"},
		{"tasks", request{}, provider{Tasks: 3, Aggregates: []*placement.Aggregate{aggregate("max_io_ops_per_host", "5"), aggregate("max_io_ops_per_host", "3")}}, "3 operations with much I/O run, the limit is 3"},
		{"tasks", request{}, provider{Tasks: 7, Aggregates: []*placement.Aggregate{aggregate("max_io_ops_per_host", "many")}}, ""},
		{"tasks", request{}, provider{Tasks: 20, Aggregates: []*placement.Aggregate{aggregate("max_io_ops_per_host", "30")}}, ""},
		{"consumers", request{}, provider{Consumers: 49}, ""},
		{"consumers", request{}, provider{Consumers: 50}, "has 50 consumers, the limit is 50"},
		{"consumers", request{}, provider{Consumers: 2, Aggregates: []*placement.Aggregate{aggregate("max_instances_per_host", "2")}}, "has 2 consumers, the limit is 2"},
	}
	tested := map[string]int{}
	for _, tt := range tests {
		f, err := scheduler.ByName(filters(placement.Options{}), []string{tt.filter})
		if err != nil {
			t.Fatal(err)
		}
		s, err := scheduler.New(scheduler.Config[*request, *provider]{Filters: f})
		if err != nil {
			t.Fatal(err)
		}
		d, err := s.Rank(t.Context(), &tt.q, []*provider{&tt.p})
		got := ""
		if errors.Is(err, scheduler.ErrNoValidHost) {
			got = d.Rejected()[0].Reason
		} else if err != nil {
			t.Fatal(err)
		}
		if got != tt.reason {
			t.Errorf("%s: %+v on %+v: %q, want %q", tt.filter, tt.q, tt.p, got, tt.reason)
		}
		if tested[tt.filter] |= 1; tt.reason != "" {
			tested[tt.filter] |= 2
		}
	}
	for _, f := range filters(placement.Options{}) {
		if tested[f.Name()] != 3 {
			t.Errorf("filter %s is not tested with a host that passes and one that does not", f.Name())
		}
	}
}

// TestGroups has the vectors of Nova's filters and weighers of server groups: the hosts that pass, the best one first. The members are those of
// the providers, as a Store counts them.
func TestGroups(t *testing.T) {
	t.Parallel()
	weighers, err := scheduler.ByName(placement.Weighers[*request, *provider](placement.Options{}), []string{"soft_affinity", "soft_anti_affinity"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := scheduler.ByName(filters(placement.Options{}), []string{"affinity", "anti_affinity"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := scheduler.New(scheduler.Config[*request, *provider]{Filters: f, Weighers: weighers})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		group   *group
		members []map[string]int64 // one map for each of the hosts h1, h2, ...
		want    string
	}{
		{"no group", nil, []map[string]int64{{"g": 1}, nil}, "h1 h2"},
		{"affinity without members", &group{Policy: placement.Affinity}, []map[string]int64{nil, nil}, "h1 h2"},
		{"affinity, members of another group", &group{Policy: placement.Affinity}, []map[string]int64{nil, {"other": 1}}, "h1 h2"},
		{"affinity on one host", &group{Policy: placement.Affinity}, []map[string]int64{nil, {"g": 1}}, "h2"},
		{"affinity on another host than the candidates", &group{Policy: placement.Affinity, Members: map[string]int64{"h9": 1}}, []map[string]int64{nil, nil}, ""},
		{"anti-affinity without members", &group{Policy: placement.AntiAffinity}, []map[string]int64{nil, nil}, "h1 h2"},
		{"anti-affinity", &group{Policy: placement.AntiAffinity}, []map[string]int64{{"g": 1}, nil}, "h2"},
		{"anti-affinity everywhere", &group{Policy: placement.AntiAffinity}, []map[string]int64{{"g": 1}, {"g": 1}}, ""},
		{"one for each host", &group{Policy: placement.AntiAffinity, MaxPerHost: 1}, []map[string]int64{{"g": 1}}, ""},
		{"two for each host, two are there", &group{Policy: placement.AntiAffinity, MaxPerHost: 2}, []map[string]int64{{"g": 2}}, ""},
		{"two for each host, one is there", &group{Policy: placement.AntiAffinity, MaxPerHost: 2}, []map[string]int64{{"g": 1}}, "h1"},
		{"one for each host, those of another group", &group{Policy: placement.AntiAffinity, MaxPerHost: 1}, []map[string]int64{{"other": 2}}, "h1"},
		{"soft affinity", &group{Policy: placement.SoftAffinity}, []map[string]int64{{"g": 1}, {"g": 4, "other": 2}, nil, {"g": 2}}, "h2 h4 h1 h3"},
		{"soft anti-affinity", &group{Policy: placement.SoftAntiAffinity}, []map[string]int64{{"g": 1}, {"g": 4, "other": 2}, nil, {"g": 2}}, "h3 h1 h4 h2"},
		{"soft anti-affinity of a new group", &group{ID: "new", Policy: placement.SoftAntiAffinity}, []map[string]int64{{"g": 1}, {"g": 4}}, "h1 h2"},
	} {
		if tt.group != nil && tt.group.ID == "" {
			tt.group.ID = "g"
		}
		var hosts []*provider
		for i, m := range tt.members {
			hosts = append(hosts, &provider{ID: "h" + strconv.Itoa(i+1), Members: m})
		}
		d, err := s.Rank(t.Context(), &request{Group: tt.group}, hosts)
		if err != nil && !errors.Is(err, scheduler.ErrNoValidHost) {
			t.Fatal(err)
		}
		var got []string
		for _, r := range d.Ranked {
			got = append(got, r.Host.ID)
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: %v, want %s", tt.name, got, tt.want)
		}
	}
}

// TestMatch has the vectors of Nova's extra specs.
func TestMatch(t *testing.T) {
	t.Parallel()
	f, err := scheduler.ByName(filters(placement.Options{}), []string{"capabilities"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := scheduler.New(scheduler.Config[*request, *provider]{Filters: f})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		value, condition string
		want             bool
	}{
		{"1", "1", true},
		{"", "1", false},
		{"3", "1", false},
		{"222", "2", false},
		{"4", "> 2", false},
		{"1", "= 1", true},
		{"", "= 1", false},
		{"3", "= 1", true},
		{"0", "= 1", false},
		{"4", "== 4", true},
		{"4.0", "== 4", true},
		{"3", "== 4", false},
		{"3", "!= 4", true},
		{"3", ">= 3", true},
		{"2", ">= 3", false},
		{"2", ">= ", false},
		{"2", "<= 10", true},
		{"12", "<= 10", false},
		{"x", ">= 1", false},
		{"1", ">= x", false},
		{"NaN", "<= 1", false},
		{"123", "s== 123", true},
		{"1234", "s== 123", false},
		{"1234", "s!= 123", true},
		{"1000", "s>= 234", false},
		{"1234", "s>= 1000", true},
		{"12", "s<= 1234", true},
		{"2", "s< 12", false},
		{"12", "s< 2", true},
		{"2", "s> 12", true},
		{"12311321", "<in> 11", true},
		{"12310321", "<in> 11", false},
		{"12310321", "<in>", false},
		{"12", "<or> 11 <or> 12", true},
		{"12", "<or> 11 <or> 12 <or>", true},
		{"13", "<or> 11 <or> 12", false},
		{"12", "<or>", false},
		{"aes mmx aux", "<all-in> aes mmx", true},
		{"aes mmx aux", "<all-in> aes mmx txt", false},
		{"aes", "<all-in>", false},
		{"a b", "a b", true},
		{"", "", true},
		{"a", "", false},
		{"a", " ", false},
	} {
		q := request{Specs: map[string]string{"capabilities:k": tt.condition}}
		_, err := s.Rank(t.Context(), &q, []*provider{{ID: "n", Capabilities: map[string]string{"k": tt.value}}})
		if got := err == nil; got != tt.want || err != nil && !errors.Is(err, scheduler.ErrNoValidHost) {
			t.Errorf("value %q, condition %q: %v, want %v", tt.value, tt.condition, err, tt.want)
		}
	}
}

// TestWeighers: each weigher gives one host the right raw score.
func TestWeighers(t *testing.T) {
	t.Parallel()
	g := func(p placement.Policy) *group { return &group{ID: "g", Policy: p, Members: map[string]int64{"n": 3}} }
	tested := map[string]bool{}
	all := placement.Weighers[*request, *provider](placement.Options{})
	for _, tt := range []struct {
		weigher    string
		q          request
		p          provider
		raw, times float64
	}{
		{"ram", request{}, provider{Inventories: inventory("MEMORY_MB", placement.Inventory{Total: 100, Reserved: 10, Ratio: 1.5, Used: 5})}, 130, 1},
		{"cpu", request{}, provider{Inventories: inventory("VCPU", placement.Inventory{Total: 2, Used: 5})}, -3, 1},
		{"disk", request{}, provider{}, 0, 1},
		{"io_ops", request{}, provider{Tasks: 4}, 4, -1},
		{"num_instances", request{}, provider{Consumers: 4}, 4, 0},
		{"soft_affinity", request{Group: g(placement.SoftAffinity)}, provider{ID: "n"}, 3, 1},
		{"soft_affinity", request{Group: g(placement.SoftAffinity)}, provider{Members: map[string]int64{"g": 2}}, 2, 1},
		{"soft_affinity", request{Group: g(placement.SoftAntiAffinity)}, provider{ID: "n"}, 0, 1},
		{"soft_anti_affinity", request{Group: g(placement.SoftAntiAffinity)}, provider{ID: "n"}, 3, -1},
		{"soft_anti_affinity", request{}, provider{ID: "n"}, 0, -1},
	} {
		w, err := scheduler.ByName(all, []string{tt.weigher})
		if err != nil {
			t.Fatal(err)
		}
		tested[tt.weigher] = true
		s, err := scheduler.New(scheduler.Config[*request, *provider]{Weighers: w})
		if err != nil {
			t.Fatal(err)
		}
		d, err := s.Rank(t.Context(), &tt.q, []*provider{&tt.p, {ID: "other"}}) // a single host is not weighed
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(d.Ranked, func(r scheduler.Ranked[*provider]) bool { return r.Host == &tt.p })
		if sc := d.Ranked[i].Scores[0]; math.Abs(sc.Raw-tt.raw) > 0.001 || sc.Multiplier != tt.times {
			t.Errorf("%s: %+v on %+v: %g times %g, want %g times %g", tt.weigher, tt.q, tt.p, sc.Raw, sc.Multiplier, tt.raw, tt.times)
		}
	}
	for _, w := range all {
		if !tested[w.Name()] {
			t.Errorf("weigher %s is not tested", w.Name())
		}
	}
}

// TestOptions: options replace the defaults.
func TestOptions(t *testing.T) {
	t.Parallel()
	o := placement.Options{
		DownAfter: time.Second, MaxTasks: 1, MaxConsumers: 1, PropertyPrefix: "os_",
		Multipliers: map[string]float64{"ram": -1},
	}
	s, err := scheduler.New(scheduler.Config[*request, *provider]{Filters: filters(o), Weighers: placement.Weighers[*request, *provider](o)})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	d, err := s.Rank(t.Context(), &request{Properties: map[string]string{"os_x": "1", "x": "1"}}, []*provider{
		{ID: "a", SeenAt: now.Add(-5 * time.Second)},
		{ID: "b", Tasks: 1},
		{ID: "c", Consumers: 1},
		{ID: "d", Aggregates: []*placement.Aggregate{aggregate("os_x", "2")}},
		{ID: "e", Aggregates: []*placement.Aggregate{aggregate("x", "2")}},
		{ID: "f", Inventories: inventory("MEMORY_MB", placement.Inventory{Total: 5})},
	})
	if err != nil || d.Summary() != "2 of 6 hosts: 1 aggregate_properties, 1 consumers, 1 down, 1 tasks" || d.Ranked[0].Host.ID != "e" {
		t.Errorf("%v, %v", d, err)
	}
}

// TestWith: With returns a changed copy, which a batch uses for its next
// choice.
func TestWith(t *testing.T) {
	t.Parallel()
	p := &provider{ID: "n1", Inventories: map[string]placement.Inventory{"VCPU": {Total: 4, Used: 1}, "MEMORY_MB": {Total: 9}}}
	q := &request{Resources: placement.Resources{"VCPU": 2}, Group: &group{ID: "g", Policy: placement.AntiAffinity, MaxPerHost: 3}}
	one := p.With(q)
	two := one.With(q)
	if p.Inventories["VCPU"].Used != 1 || p.Members != nil || one.Inventories["VCPU"].Used != 3 || one.Members["g"] != 1 ||
		two.Inventories["VCPU"].Used != 5 || two.Members["g"] != 2 || two.Consumers != 2 || two.Tasks != 2 {
		t.Errorf("%+v\n%+v\n%+v", p, one, two)
	}
	s, err := scheduler.New(scheduler.Config[*request, *provider]{Filters: filters(placement.Options{}), Weighers: placement.Weighers[*request, *provider](placement.Options{})})
	if err != nil {
		t.Fatal(err)
	}
	var hosts []*provider
	for _, id := range []string{"a", "b", "c"} {
		hosts = append(hosts, &provider{ID: id, Inventories: map[string]placement.Inventory{"VCPU": {Total: 5}, "MEMORY_MB": {Total: 9}, "DISK_GB": {Total: 9}}})
	}
	b, err := s.RankMany(t.Context(), q, hosts, 6, func(p *provider) *provider { return p.With(q) })
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range b.Hosts {
		got = append(got, h.ID)
	}
	if strings.Join(got, " ") != "a b c a b c" {
		t.Errorf("spread over %v", got)
	}
	if _, err := s.RankMany(t.Context(), q, hosts, 7, func(p *provider) *provider { return p.With(q) }); !errors.Is(err, scheduler.ErrNoValidHost) {
		t.Errorf("a seventh: %v", err)
	}
}
