package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/compute/v2/servers"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
	"github.com/armature-go/armature/internal/envtest"
	"github.com/armature-go/armature/internal/releasetest"
	"github.com/armature-go/armature/internal/waittest"
)

const novaMini = "./examples/nova-mini"

// ofNext is an SQL condition for the operations with the steps of the next release: their kinds have a higher version than in this release.
var ofNext = func() string {
	stop := store.Kinds[compute.Stop]
	return fmt.Sprintf("kind_version > CASE kind WHEN '%s' THEN %d WHEN '%s' THEN %d ELSE 0 END", store.Create.Name, store.Create.Version, stop.Name, stop.Version)
}()

// upgradeOrder is the documented order in which the processes of a cloud are replaced, after the upgrade of the schema.
var upgradeOrder = []string{"conductor-1", "conductor-2", "scheduler-1", "scheduler-2", "node-1", "node-2", "api-1", "api-2"}

// upgradeServices are the services, by process.
var upgradeServices = map[string]string{
	"conductor-1": "conductor", "conductor-2": "conductor", "scheduler-1": "scheduler", "scheduler-2": "scheduler",
	"node-1": "compute", "node-2": "compute", "api-1": "api", "api-2": "api", "conductor-3": "conductor",
}

// upgradeRelease is a program and its configuration.
type upgradeRelease struct {
	name, program, conf string
	lines               string // lines of the section DEFAULT with options that only this release knows
	wrongClocks         bool   // whether the clocks of two of three processes are an hour fast or slow; then the function moved has built the program
}

// upgrade is a cloud whose processes are replaced while clients use it.
type upgrade struct {
	*cloud

	rng      *rand.Rand // used only by the goroutine of the test
	balancer *balancer
	urls     map[string]string // the URLs of the APIs, by process
	logs     []*safeBuffer     // the logs of all processes that have run

	mu       sync.Mutex
	kept     map[string]bool // ids of servers that must exist
	deleted  map[string]bool // ids of servers whose deletion was accepted
	lost     []string        // names of servers whose creation had no answer
	failures []string        // requests that failed

	requests, created atomic.Int64 // the numbers of requests and of created servers
	kills             int          // the number of killed processes
}

// newUpgrade starts a cloud of a release.
func newUpgrade(t *testing.T, seed uint64, r *upgradeRelease) *upgrade {
	t.Helper()
	u := &upgrade{
		rng: rand.New(rand.NewPCG(seed, 0)), kept: map[string]bool{}, deleted: map[string]bool{}, urls: map[string]string{},
		balancer: &balancer{ready: map[string]bool{}, client: &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 32}}},
	}
	u.cloud = newCloudOf(t, r.program, "drain_delay = 3\n[driver_fake]\nvcpus = 10000\nmemory_mib = 10000000\ndisk_gib = 100000\n")
	r.conf = u.confOf(r.name, r.lines)
	ctx, cancel := context.WithCancel(t.Context())
	var probing sync.WaitGroup
	probing.Go(func() { u.balancer.probe(ctx) })
	t.Cleanup(func() { cancel(); probing.Wait() })
	for _, host := range upgradeOrder {
		u.launch(host, r)
	}
	for _, host := range upgradeOrder {
		u.awaitReady(host)
	}
	u.hostsUp(u.newClient(u.urls["api-1"]), 2)
	return u
}

// launch starts a process of a release.
func (u *upgrade) launch(host string, r *upgradeRelease) {
	u.Helper()
	admin := envtest.FreeAddr(u)
	u.program, u.conf = r.program, r.conf
	env := []string{"OS_DEFAULT__ADMIN_LISTEN=" + admin}
	if r.wrongClocks {
		env = append(env, clockVar+"="+[]string{"0@0", "3600@0", "-3600@0"}[slices.Index(upgradeOrder, host)%3])
	}
	p := u.startWith(upgradeServices[host], host, env...)
	p.admin = admin
	u.logs = append(u.logs, p.log)
}

// logged returns the number of log lines with a text, of all processes.
func (u *upgrade) logged(text string) (n int) {
	for _, l := range u.logs {
		n += strings.Count(l.String(), text)
	}
	return n
}

// These texts are in log lines of the next release. sentTooEarly: a method of the next release was sent to a process that does not have
// the method. servedNext: a process has handled a method of the next release.
const sentTooEarly, servedNext = "next: sent too early", "next: served"

// awaitReady waits until a process is ready. If the process is an API, awaitReady also waits until the balancer sends requests to it.
func (u *upgrade) awaitReady(host string) {
	u.Helper()
	p := u.procs[host]
	u.poll(host+" to be ready", 60*time.Second, func() error {
		select {
		case <-p.Done():
			u.Fatalf("%s ended: %v\n%s", host, p.Err(), tail(p.log.String(), 3000))
		default:
		}
		return probe(u.Context(), "http://"+p.admin+"/readyz")
	})
	if upgradeServices[host] != "api" {
		return
	}
	url := strings.TrimSuffix(u.client(p).Endpoint, "/v2.1/")
	u.balancer.remove(u.urls[host])
	u.urls[host] = url
	u.balancer.add(url)
	u.poll("the balancer to find "+host, 30*time.Second, func() error { return u.balancer.knows(url) })
}

func tail(text string, n int) string { return text[max(0, len(text)-n):] }

// probe returns nil if a URL answers 200.
func probe(ctx context.Context, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %.300s", res.Status, text)
	}
	return nil
}

// replace replaces a process. The parameter from is the release of the old process, and the parameter to is the release of the new process. If kill is true, the old process is
// killed and started again twice on the newer schema, and then killed. The new process is killed within a second of its start, and started
// again.
func (u *upgrade) replace(host string, from, to *upgradeRelease, kill bool) {
	u.Helper()
	if kill {
		for range 2 {
			u.procs[host].Kill()
			u.kills++
			u.launch(host, from)
			u.awaitReady(host)
		}
		u.procs[host].Kill()
		u.kills++
		u.launch(host, to)
		waittest.Spend(time.Duration(u.rng.IntN(1000))*time.Millisecond, "the work before the process is killed")
		u.procs[host].Kill()
		u.kills++
	} else {
		p := u.procs[host]
		if err := p.Signal(syscall.SIGTERM); err != nil {
			u.Fatalf("%s: %v\n%s", host, err, tail(p.log.String(), 3000))
		}
		select {
		case <-p.Done():
			if p.ExitCode() != 0 {
				u.Errorf("%s of release %s ended with %v\n%s", host, from.name, p.Err(), tail(p.log.String(), 3000))
			}
		case <-time.After(90 * time.Second):
			u.Fatalf("%s of release %s does not end", host, from.name)
		}
	}
	u.launch(host, to)
	u.awaitReady(host)
}

// use creates servers, and stops, starts and reboots them, until stop is closed. Each request is sent only once.
func (u *upgrade) use(ctx context.Context, client int, stop <-chan struct{}) {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return
		case <-ctx.Done():
			return
		default:
		}
		u.useServer(ctx, fmt.Sprintf("upgrade-%d-%d", client, n), n)
	}
}

// useServer creates a server, and stops, starts and reboots it. If n is odd, it also deletes the server.
func (u *upgrade) useServer(ctx context.Context, name string, n int) {
	var id string
	err := u.request(ctx, "create "+name, func(cl *gophercloud.ServiceClient) error {
		s, err := create(ctx, cl, name, "1", map[string]string{"fake:spawn": "slow 200ms"})
		if err == nil {
			id = s.ID
		}
		return err
	})
	if err != nil {
		u.mu.Lock()
		u.lost = append(u.lost, name)
		u.mu.Unlock()
		waittest.Spend(200*time.Millisecond, "the time between two requests of a client")
		return
	}
	u.mu.Lock()
	u.kept[id] = true
	u.mu.Unlock()
	u.created.Add(1)
	acts := []struct {
		name string
		act  func(cl *gophercloud.ServiceClient) error
	}{
		{"stop", func(cl *gophercloud.ServiceClient) error { return servers.Stop(ctx, cl, id).ExtractErr() }},
		{"start", func(cl *gophercloud.ServiceClient) error { return servers.Start(ctx, cl, id).ExtractErr() }},
		{"reboot", func(cl *gophercloud.ServiceClient) error {
			return servers.Reboot(ctx, cl, id, servers.RebootOpts{Type: servers.HardReboot}).ExtractErr()
		}},
	}
	for _, a := range acts {
		if !u.idle(ctx, id) {
			return
		}
		if err := u.request(ctx, a.name+" "+name, a.act); err != nil {
			waittest.Spend(200*time.Millisecond, "the time between two requests of a client")
		}
	}
	if n%2 == 0 || !u.idle(ctx, id) {
		return
	}
	u.mu.Lock()
	delete(u.kept, id)
	u.mu.Unlock()
	if u.request(ctx, "delete "+name, func(cl *gophercloud.ServiceClient) error { return servers.Delete(ctx, cl, id).ExtractErr() }) == nil {
		u.mu.Lock()
		u.deleted[id] = true
		u.mu.Unlock()
	}
}

// request sends one request to an API that is ready, and records a failure.
func (u *upgrade) request(ctx context.Context, what string, f func(cl *gophercloud.ServiceClient) error) error {
	at, err := u.balancer.pick()
	if err == nil {
		u.requests.Add(1)
		cl := u.newClient(at)
		cl.HTTPClient.Timeout = 30 * time.Second
		err = f(cl)
	}
	if err != nil && ctx.Err() == nil {
		u.mu.Lock()
		u.failures = append(u.failures, fmt.Sprintf("%s: %s: %v", time.Now().Format("15:04:05.000"), what, err))
		u.mu.Unlock()
	}
	return err
}

// idle waits until a server has no task. It returns false if the server is in ERROR, or if the server still has a task after 90 s.
func (u *upgrade) idle(ctx context.Context, id string) bool {
	for end := time.Now().Add(90 * time.Second); ctx.Err() == nil; {
		var s *servers.Server
		err := u.request(ctx, "show "+id, func(cl *gophercloud.ServiceClient) (err error) {
			s, err = servers.Get(ctx, cl, id).Extract()
			return err
		})
		if err == nil && s.TaskState == "" && s.Status != "BUILD" {
			return s.Status != "ERROR"
		}
		if time.Now().After(end) {
			u.Errorf("server %s is not idle after 90 s: %v", id, err)
			return false
		}
		waittest.Spend(200*time.Millisecond, "the time between two requests of a client")
	}
	return false
}

// judge waits until no server has a task. It fails the test if a server is lost, stuck, doubled or in ERROR. If killed is false, it also
// fails the test if a request failed.
func (u *upgrade) judge(what string, killed bool) {
	u.Helper()
	cl := u.newClient(u.urls["api-1"])
	list, stuck := u.awaitNoTasks(cl, servers.ListOpts{}, 90*time.Second)
	lost, broken, doubled := 0, 0, 0
	u.mu.Lock()
	defer u.mu.Unlock()
	for id := range u.kept {
		if !slices.ContainsFunc(list, func(s servers.Server) bool { return s.ID == id }) {
			u.Logf("lost: %s", id)
			lost++
		}
	}
	byName := map[string]int{}
	for _, s := range list {
		byName[s.Name]++
		switch {
		case u.deleted[s.ID]:
			u.Logf("lost: the deletion of %s", s.ID)
			lost++
		case s.Status == "ERROR":
			u.Logf("ERROR: %s: %+v", s.ID, s.Fault)
			broken++
		case s.TaskState != "" || s.Status == "BUILD":
			u.Logf("stuck: %s: %s, task %q, host %q", s.ID, s.Status, s.TaskState, s.Host)
		}
	}
	for name, n := range byName {
		if n > 1 {
			u.Logf("doubled: %s", name)
			doubled++
		}
	}
	made := 0
	for _, name := range u.lost {
		u.Logf("creation without an answer: %s made %d servers", name, byName[name])
		made += byName[name]
	}
	if killed {
		u.Logf("requests without an answer:\n%s", strings.Join(u.failures, "\n"))
	}
	skipped, fields, checked := u.judgeOperations()
	fmt.Printf("upgrade, %s: %d requests, %d servers, %d SIGKILLs; failed %d, lost %d, stuck %d, doubled %d, ERROR %d, steps skipped %d and fields lost %d of %d operations; methods of the next release: %d served, %d sent to a process that did not have them; of %d creations without an answer %d made a server\n",
		what, u.requests.Load(), u.created.Load(), u.kills, len(u.failures), lost, stuck, doubled, broken, skipped, fields, checked, u.logged(servedNext), u.logged(sentTooEarly), len(u.lost), made)
	if len(u.failures) > 0 && !killed {
		u.Errorf("%d requests failed, want 0:\n%s", len(u.failures), strings.Join(u.failures[:min(len(u.failures), 20)], "\n"))
	}
	if lost+stuck+doubled+broken+skipped+fields > 0 {
		u.Errorf("%s: lost %d, stuck %d, doubled %d, ERROR %d, steps skipped %d, fields lost %d; want 0", what, lost, stuck, doubled, broken, skipped, fields)
	}
	if n := u.logged(sentTooEarly); n > 0 {
		u.Errorf("%d messages of methods of the next release were sent to a process that did not have the method, want 0", n)
	}
	if checked == 0 && strings.Contains(what, "next") {
		u.Error("no operation of the next release was checked")
	}
}

// judgeOperations checks the operations with the steps of the next release. It returns the number of operations that have succeeded without the
// new step, the number that have lost the new field, and the number of checked operations. Only operations that the next release has begun have
// the new field.
func (u *upgrade) judgeOperations() (skipped, fields, checked int) {
	u.Helper()
	var list []struct {
		ID    string `db:"id"`
		Kind  string `db:"kind"`
		State string `db:"state"`
		Input string `db:"input"`
		Data  string `db:"data"`
		Done  int    `db:"done"`
	}
	err := u.db.SelectContext(u.Context(), &list, `SELECT o.id, o.kind, o.state, o.input, o.data,
		(SELECT COUNT(*) FROM operation_events e WHERE e.operation_id = o.id AND e.step = 'next') AS done
		FROM operations o WHERE `+ofNext)
	if err != nil {
		if strings.Contains(err.Error(), "kind_version") { // the previous release does not have this column
			return 0, 0, 0
		}
		u.Error(err)
	}
	for _, o := range list {
		checked++
		if o.State == "succeeded" && o.Done == 0 {
			u.Logf("operation %s %s succeeded without the step next", o.Kind, o.ID)
			skipped++
		}
		if strings.Contains(o.Input, `"next"`) && o.Data != "null" && !strings.Contains(o.Data, `"next":"kept"`) {
			u.Logf("operation %s %s has lost a field: %s", o.Kind, o.ID, o.Data)
			fields++
		}
	}
	return skipped, fields, checked
}

// checkColumns checks that testdata/next adds a column to every table.
func (u *upgrade) checkColumns() {
	u.Helper()
	var missing []string
	err := u.db.SelectContext(u.Context(), &missing, `SELECT table_name FROM information_schema.tables t WHERE table_schema = DATABASE() AND table_type = 'BASE TABLE'
		AND table_name NOT LIKE '%\_migrations' AND NOT EXISTS (SELECT 1 FROM information_schema.columns c
		WHERE c.table_schema = t.table_schema AND c.table_name = t.table_name AND c.column_name = 'next_note')`)
	if err != nil || len(missing) > 0 {
		u.Errorf("tables without a column of the next release: %v %v; add them to testdata/next", missing, err)
	}
}

// finish starts a conductor of the next release if open operations are left that only the next release knows: see
// docs/upgrading.md.
func (u *upgrade) finish(next *upgradeRelease) {
	u.Helper()
	waittest.Spend(time.Second, "time in which a runner ends the operations that it knows")
	var left int
	if err := u.db.GetContext(u.Context(), &left, `SELECT COUNT(*) FROM operations WHERE active IS NOT NULL AND `+ofNext); err != nil {
		u.Fatal(err)
	}
	if left == 0 {
		return
	}
	u.Logf("%d operations of release %s are left after going back; a conductor of that release finishes them", left, next.name)
	u.launch("conductor-3", next)
	u.awaitReady("conductor-3")
}

// upgradeRound upgrades a cloud from one release to another while eight clients use it. If back is set, it then goes back.
func upgradeRound(t *testing.T, seed uint64, from, to *upgradeRelease, order []string, kill, back bool) {
	t.Helper()
	u := newUpgrade(t, seed, from)
	to.conf = u.confOf(to.name, to.lines)
	ctx := t.Context()
	stop := make(chan struct{})
	var using sync.WaitGroup
	for i := range 8 {
		using.Go(func() { u.use(ctx, i, stop) })
	}
	end := sync.OnceFunc(func() {
		close(stop)
		using.Wait()
	})
	t.Cleanup(end) // a client that reports an error after the test would hide why it has failed
	waittest.Spend(time.Second, "the work in the old release")
	u.program, u.conf = to.program, to.conf
	if out, err := u.command("db", "sync").CombinedOutput(); err != nil {
		t.Errorf("db sync of release %s: %v: %s", to.name, err, out)
	}
	for _, host := range order {
		u.replace(host, from, to, kill)
	}
	waittest.Spend(time.Second, "the work in the new release")
	if back {
		u.checkColumns()
		u.poll("the methods of the next release to be used", 30*time.Second, func() error {
			if u.logged(servedNext) == 0 {
				return errors.New("no process has logged one")
			}
			return nil
		})
		for _, host := range slices.Backward(order) {
			u.replace(host, to, from, kill)
		}
		u.finish(to)
	}
	end()
	u.judge(fmt.Sprintf("%s to %s%s%s", from.name, to.name, map[bool]string{true: " and back"}[back], map[bool]string{true: ", killed"}[kill]), kill)
}

// TestUpgrade: a cloud is upgraded to the next release, and goes back, while clients use it. No request fails. With SIGKILL requests may
// fail, but no server is lost. ARMATURE_UPGRADE_ROUNDS is the number of random orders. The test takes minutes and the whole processor, so it
// runs only in `make upgrade-test` and `make accept`.
func TestUpgrade(t *testing.T) { //nolint:paralleltest // no other test may use the processor
	text := os.Getenv("ARMATURE_UPGRADE_ROUNDS")
	if text == "" {
		t.Skip("runs with make upgrade-test and make accept")
	}
	var rounds int
	if _, err := fmt.Sscan(text, &rounds); err != nil {
		t.Fatal(err)
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("ARMATURE_UPGRADE_SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	this := &upgradeRelease{name: "this", lines: noQuota, program: releasetest.This(t, novaMini)}
	rules := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(rules, []byte("next_rule: role:admin\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	next := &upgradeRelease{name: "next", lines: noQuota + "next_option = x\n[oslo_policy]\npolicy_file = " + rules + "\n[DEFAULT]\n", program: releasetest.Next(t, novaMini)}
	last := &upgradeRelease{name: "last", program: releasetest.Last(t, novaMini)}
	run := func(name string, f func(t *testing.T)) { t.Run(name, f) }
	run("last", func(t *testing.T) { upgradeRound(t, seed, last, this, upgradeOrder, false, false) })
	run("documented", func(t *testing.T) { upgradeRound(t, seed, this, next, upgradeOrder, false, true) })
	if rounds >= 10 { // make accept has fewer rounds
		run("clocks", func(t *testing.T) {
			program, err := moved()
			if err != nil {
				t.Fatal(err)
			}
			upgradeRound(t, seed, &upgradeRelease{name: "this with wrong clocks", lines: noQuota, program: program, wrongClocks: true}, next, upgradeOrder, false, true)
		})
	}
	run("documented-killed", func(t *testing.T) { upgradeRound(t, seed, this, next, upgradeOrder, true, true) })
	for i := range rounds {
		order := slices.Clone(upgradeOrder)
		rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		run(fmt.Sprintf("random-%d", i), func(t *testing.T) { upgradeRound(t, seed+uint64(i), this, next, order, false, true) })
		run(fmt.Sprintf("killed-%d", i), func(t *testing.T) { upgradeRound(t, seed+uint64(i), this, next, order, true, true) })
	}
}
