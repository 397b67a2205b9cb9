package e2e_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// figure is a figure that users of nova-mini notice, such as a duration. If a higher figure is better, its unit ends in /s.
type figure struct{ name, unit string }

// benched is a cloud of one program, with the figures of each round.
type benched struct {
	name, latest string // latest is a microversion whose servers have all fields
	*cloud

	urls    map[string]string    // two URLs of the API: with separate processes, and with all services in one process
	figures map[figure][]float64 // one value for each round
}

// BenchmarkUse measures what users of nova-mini notice: the time of a POST, the number of servers per second that become ACTIVE, the time of lists, and
// memory. If ARMATURE_BEFORE is the path of another program of nova-mini, such as that of an older commit, both programs are measured in turn, and each
// figure gets a ratio. If the older program does not know 2.96, ARMATURE_BEFORE_LATEST is its latest microversion. The idle processes of the other program
// use little processor time, because they report only every 10 s.
func BenchmarkUse(b *testing.B) {
	clouds := []*benched{newBenched(b, "now", "2.96", "", "[quota]\ninstances = 1000000\ncores = 1000000\nram = 1000000000\n")}
	if path := os.Getenv("ARMATURE_BEFORE"); path != "" {
		clouds = append(clouds, newBenched(b, "before", os.Getenv("ARMATURE_BEFORE_LATEST"), path, ""))
	}
	for b.Loop() {
		for _, c := range clouds {
			c.round(b.Context())
		}
	}
	for _, f := range clouds[0].order() {
		now := median(clouds[0].figures[f])
		text := fmt.Sprintf("%-55s %10.2f %s", f.name, now, f.unit)
		if len(clouds) > 1 {
			if before := clouds[1].figures[f]; len(before) > 0 {
				text += fmt.Sprintf(", before %10.2f, ratio %.2f", median(before), now/median(before))
			}
		}
		fmt.Println(text) // the package testing prints ten lines of a log
	}
	for _, c := range clouds {
		for _, p := range c.procs {
			p.Kill()
		}
	}
}

func median(list []float64) float64 {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

func newBenched(b *testing.B, name, latest, program, conf string) *benched {
	b.Helper()
	const room = "[driver_fake]\nvcpus = 1000000\nmemory_mib = 1000000000\ndisk_gib = 10000000\n"
	c := &benched{name: name, latest: cmp.Or(latest, "2.96"), cloud: newCloudOf(b, program, room+conf), urls: map[string]string{}, figures: map[figure][]float64{}}
	slow := []string{"OS_DEFAULT__REPORT_INTERVAL=10", "OS_DEFAULT__SERVICE_DOWN_TIME=60", "OS_DEFAULT__DEBUG=false"}
	for _, s := range []string{"conductor c-1", "scheduler s-1", "compute node-1", "compute node-2", "compute node-3", "compute node-4", "api api-1"} {
		service, host, _ := strings.Cut(s, " ")
		c.startWith(service, host, slow...)
	}
	one := c.startWith("", "all", append(slow, "OS_DEFAULT__TRANSPORT_URL=", "OS_DATABASE__CONNECTION=sqlite://"+c.dir+"/one.db", "OS_DRIVER_FAKE__HOSTS=4", "OS_DEFAULT__STATE_PATH="+c.dir+"/all")...)
	for at, p := range map[string]*process{"processes": c.procs["api-1"], "one process": one} {
		cl := c.client(p)
		c.urls[at] = cl.Endpoint
		c.hostsUp(cl, 4)
	}
	return c
}

// order returns the figures in the order in which they are printed.
func (c *benched) order() (out []figure) {
	for f := range c.figures {
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b figure) int { return strings.Compare(a.name, b.name) })
	return out
}

func (c *benched) add(name, unit string, value float64) {
	c.figures[figure{name, unit}] = append(c.figures[figure{name, unit}], value)
}

// round measures each figure once.
func (c *benched) round(ctx context.Context) {
	for _, at := range []string{"processes", "one process"} {
		took := c.each(1, 150, func(int) { c.post(ctx, at) })
		if c.built(ctx, at); at == "processes" {
			c.add("POST, one at a time, p50", "ms", median(took))
		}
		began := time.Now()
		c.each(16, 500, func(int) { c.post(ctx, at) })
		c.built(ctx, at)
		c.add("500 servers until ACTIVE, 16 clients, "+at, "servers/s", 500/time.Since(began).Seconds())
	}
	for i := range 350 { // then the cloud has 1,000 servers
		if c.post(ctx, "processes"); i%50 == 49 {
			c.built(ctx, "processes")
		}
	}
	var ids []string
	for name, version := range map[string]string{"2.1": "2.1", "the latest": c.latest} {
		var raw []byte
		took := c.each(1, 20, func(int) { raw = c.get(ctx, "processes", version, "servers/detail?limit=1000") })
		c.add("GET /servers/detail, 1,000 servers, "+name+", p50", "ms", median(took))
		if ids = idsOf(raw); len(ids) != 1000 {
			c.Fatalf("%d servers: %.300s", len(ids), raw)
		}
	}
	began := time.Now()
	c.each(16, 20000, func(i int) { c.get(ctx, "processes", "2.1", "servers/"+ids[i%len(ids)]) })
	c.add("GET /servers/{id}, 16 clients", "requests/s", 20000/time.Since(began).Seconds())
	for _, p := range c.procs {
		raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(p.PID()), "statm"))
		if err != nil {
			c.Fatal(err)
		}
		pages, err := strconv.Atoi(strings.Fields(string(raw))[1])
		if err != nil {
			c.Fatal(err)
		}
		c.add("resident memory of "+p.name, "MiB", float64(pages*os.Getpagesize())/(1<<20))
	}
	for at := range c.urls {
		all := idsOf(c.get(ctx, at, "2.1", "servers?limit=1000"))
		c.each(8, len(all), func(i int) { c.send(ctx, at, "2.1", http.MethodDelete, "servers/"+all[i], "", http.StatusNoContent) })
		c.poll("servers to be gone", time.Minute, func() error {
			if left := idsOf(c.get(ctx, at, "2.1", "servers?limit=1000")); len(left) > 0 {
				return fmt.Errorf("%d servers", len(left))
			}
			return nil
		})
	}
}

// each calls the function f n times, from several clients at the same time. It returns the durations of the calls in milliseconds.
func (c *benched) each(clients, n int, f func(i int)) []float64 {
	took, next := make([]float64, n), make(chan int)
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			for i := range next {
				began := time.Now()
				f(i)
				took[i] = float64(time.Since(began).Microseconds()) / 1000
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	return took
}

func (c *benched) post(ctx context.Context, at string) {
	c.send(ctx, at, "2.1", http.MethodPost, "servers", `{"server": {"name": "b", "flavorRef": "1", "imageRef": "cirros"}}`, http.StatusAccepted)
}

// built waits until no server is in BUILD.
func (c *benched) built(ctx context.Context, at string) {
	c.poll("servers to be ACTIVE", time.Minute, func() error {
		if left := idsOf(c.get(ctx, at, "2.1", "servers?status=BUILD&limit=1")); len(left) > 0 {
			return fmt.Errorf("server %s is in BUILD", left[0])
		}
		return nil
	})
	if wrong := idsOf(c.get(ctx, at, "2.1", "servers?status=ERROR&limit=1")); len(wrong) > 0 {
		c.Fatalf("server %s is in ERROR", wrong[0])
	}
}

func (c *benched) get(ctx context.Context, at, version, path string) []byte {
	return c.send(ctx, at, version, http.MethodGet, path, "", http.StatusOK)
}

var benchClient = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}}

func (c *benched) send(ctx context.Context, at, version, method, path, body string, want int) []byte {
	r, err := http.NewRequestWithContext(ctx, method, c.urls[at]+path, strings.NewReader(body))
	if err != nil {
		c.Error(err)
		return nil
	}
	r.Header.Set("OpenStack-API-Version", "compute "+version)
	r.Header.Set("Content-Type", "application/json")
	res, err := benchClient.Do(r)
	if err != nil {
		c.Error(err)
		return nil
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != want {
		c.Errorf("%s %s: %d %.300s, %v", method, path, res.StatusCode, raw, err)
	}
	return raw
}

// idsOf returns the ids of the servers of a list.
func idsOf(raw []byte) (ids []string) {
	var list struct{ Servers []struct{ ID string } }
	_ = json.Unmarshal(raw, &list) // if the reply is not a list, send has reported it
	for _, one := range list.Servers {
		ids = append(ids, one.ID)
	}
	return ids
}
