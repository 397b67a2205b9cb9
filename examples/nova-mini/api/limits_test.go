package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

var limits = store.Limits{
	store.Instances: 3, store.Cores: 20, store.RAM: 2100, store.Metadata: 2, store.KeyPairs: 100, store.ServerGroups: 10, store.GroupMembers: 10,
}

// TestLimits: at each version, the limits have the keys of Nova's samples, and the amounts that a project uses are correct.
func TestLimits(t *testing.T) {
	t.Parallel()
	eachCloudLimited(t, limits, func(c *cloud) {
		for version, folder := range map[string]string{"2.1": "", "2.36": "v2.36/", "2.39": "v2.39/", "2.57": "v2.57/", "2.104": "v2.57/"} {
			c.sameShape(version, sample(c.T, "limits/"+folder+"limit-get-resp.json"), c.want(200, version, "member", "GET", "/limits", ""))
		}
		c.want(202, "2.1", "member", "POST", "/servers", `{"server": {"name": "a", "flavorRef": "1", "imageRef": "x"}}`)
		var got struct {
			Limits struct{ Absolute map[string]int64 }
		}
		for _, query := range []string{"member /limits", "admin /limits?tenant_id=p1"} {
			who, path, _ := strings.Cut(query, " ")
			if err := json.Unmarshal([]byte(c.want(200, "2.1", who, "GET", path, "")), &got); err != nil {
				c.Fatal(err)
			}
			if a := got.Limits.Absolute; a["totalInstancesUsed"] != 1 || a["totalCoresUsed"] != 1 || a["totalRAMUsed"] != 512 || a["maxTotalInstances"] != 3 || a["maxServerMeta"] != 2 {
				c.Errorf("%s: %v", query, a)
			}
		}
		c.want(403, "2.1", "member", "GET", "/limits?tenant_id=p9", "")
		c.want(200, "2.74", "member", "GET", "/limits?x=1", "")
		c.want(400, "2.75", "member", "GET", "/limits?x=1", "")
	})
}

// TestQuota: servers count in the quota of their project until they are removed. The quota is exact, even if requests run at the same time.
// The errors of refused requests are Nova's.
func TestQuota(t *testing.T) {
	t.Parallel()
	eachCloudLimited(t, limits, func(c *cloud) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		count := map[int]int{}
		for i := range 8 {
			wg.Go(func() {
				status, reply := c.askAt("2.1", "member", "POST", "/servers", fmt.Sprintf(`{"server": {"name": "s%d", "flavorRef": "1", "imageRef": "x"}}`, i))
				if want := "Quota exceeded for instances: Requested 1, but already used 3 of 3 instances"; status == 403 && !strings.Contains(reply, want) {
					c.Errorf("%s, want %s", reply, want)
				}
				mu.Lock()
				defer mu.Unlock()
				count[status]++
			})
		}
		wg.Wait()
		if count[202] != 3 || count[403] != 5 {
			c.Errorf("statuses: %v", count)
		}
		reply := c.want(403, "2.1", "member", "POST", "/servers", `{"server": {"name": "b", "flavorRef": "2", "imageRef": "x"}}`)
		if want := "Quota exceeded for instances, ram: Requested 1, 2048, but already used 3, 1536 of 3, 2100 instances, ram"; !strings.Contains(reply, want) {
			c.Errorf("%s, want %s", reply, want)
		}
		c.want(202, "2.1", "stranger", "POST", "/servers", `{"server": {"name": "a", "flavorRef": "1", "imageRef": "x"}}`) // another project
		list, _ := c.list("member", "servers", "")
		for range 2 { // the second removal is that of a conductor that repeats its step after a crash
			if err := db.Tx(c.Context(), c.db, func(ctx context.Context, tx *sqlx.Tx) error { return c.store.Remove(ctx, tx, list[0].text("id")) }); err != nil {
				c.Fatal(err)
			}
		}
		c.want(202, "2.1", "member", "POST", "/servers", `{"server": {"name": "c", "flavorRef": "1", "imageRef": "x"}}`)
		c.want(403, "2.1", "member", "POST", "/servers", `{"server": {"name": "d", "flavorRef": "1", "imageRef": "x"}}`)
		reply = c.want(403, "2.1", "stranger", "POST", "/servers", `{"server": {"name": "m", "flavorRef": "1", "imageRef": "x", "metadata": {"a": "1", "b": "2", "c": "3"}}}`)
		if !strings.Contains(reply, "Maximum number of metadata items exceeds 2") {
			c.Error(reply)
		}
	})
}

// TestAboveLimit: after a limit was lowered, objects above the limit can still be deleted. A refused request uses no quota.
func TestAboveLimit(t *testing.T) {
	t.Parallel()
	eachCloudLimited(t, store.Limits{store.Metadata: 1, store.KeyPairs: 1}, func(c *cloud) {
		id := c.addActive("x")
		if _, err := c.db.ExecContext(c.Context(), `UPDATE servers SET metadata = '{"a": "1", "b": "2", "c": "3"}' WHERE id = ?`, id); err != nil {
			c.Fatal(err)
		}
		c.want(403, "2.1", "member", "PUT", "/servers/"+id+"/metadata/a", `{"meta": {"a": "9"}}`)
		c.want(204, "2.1", "member", "DELETE", "/servers/"+id+"/metadata/a", "")
		c.want(204, "2.1", "member", "DELETE", "/servers/"+id+"/metadata/b", "")

		c.want(200, "2.1", "member", "POST", "/os-keypairs", `{"keypair": {"name": "k"}}`)
		for _, body := range []string{`{"name": "k"}`, `{"name": "n"}`, `{"name": "n", "public_key": "no key"}`} { // the quota comes first, as in Nova
			if reply := c.want(403, "2.1", "member", "POST", "/os-keypairs", `{"keypair": `+body+`}`); !strings.Contains(reply, "Quota exceeded, too many key pairs.") {
				c.Error(reply)
			}
		}
		reply := c.want(400, "2.1", "member", "POST", "/servers", `{"server": {"name": "x", "flavorRef": "1", "imageRef": "x"}, "os:scheduler_hints": {"x": "`+strings.Repeat("a", 9000)+`"}}`)
		if !strings.Contains(reply, "more than 8192") {
			c.Error(reply)
		}
	})
}

// TestCountsInQuota: as in Nova, a request for several servers creates as many as the quota allows. If the quota allows fewer than min_count, the request
// is refused.
func TestCountsInQuota(t *testing.T) {
	t.Parallel()
	eachCloudLimited(t, limits, func(c *cloud) {
		several := func(least, most int) string {
			return fmt.Sprintf(`{"server": {"name": "s", "flavorRef": "1", "imageRef": "x", "min_count": %d, "max_count": %d}}`, least, most)
		}
		c.want(202, "2.1", "member", "POST", "/servers", several(1, 2))
		reply := c.want(403, "2.1", "member", "POST", "/servers", several(2, 4))
		if want := "Quota exceeded for instances, ram: Requested 2-4, 2048, but already used 2, 1024 of 3, 2100 instances, ram"; !strings.Contains(reply, want) {
			c.Errorf("%s, want %s", reply, want)
		}
		c.want(202, "2.1", "member", "POST", "/servers", several(1, 4))
		var names []string
		list, _ := c.list("member", "servers", "")
		for _, one := range list {
			names = append(names, one.text("name"))
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != "s s-1 s-2" {
			c.Errorf("servers: %s", got)
		}
		c.want(403, "2.1", "member", "POST", "/servers", several(1, 2))
	})
}

// TestResizeQuota: the quota must allow the larger size of a resize. The error of a refused resize is Nova's.
func TestResizeQuota(t *testing.T) {
	t.Parallel()
	eachCloudLimited(t, store.Limits{store.Instances: 1, store.Cores: 2, store.RAM: 2000}, func(c *cloud) {
		id := c.launched()
		c.addHost()
		reply := c.want(403, "2.1", "member", "POST", "/servers/"+id+"/action", `{"resize": {"flavorRef": "2"}}`)
		if want := "Quota exceeded for ram: Requested 1536, but already used 512 of 2000 ram"; !strings.Contains(reply, want) {
			c.Errorf("%s, want %s", reply, want)
		}
	})
}
