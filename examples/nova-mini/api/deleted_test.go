package api_test

import (
	"context"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/armature-go/armature/db"
)

// removed creates a server and deletes it, as a conductor does.
func (c *cloud) removed() string {
	c.Helper()
	id := c.launched()
	if err := c.store.BeginDelete(c.Context(), id); err != nil {
		c.Fatal(err)
	}
	err := db.Tx(c.Context(), c.db, func(ctx context.Context, tx *sqlx.Tx) error {
		if _, err := tx.ExecContext(ctx, `UPDATE operations SET state = 'succeeded', active = NULL WHERE active = ?`, id); err != nil {
			return err
		}
		return c.store.Remove(ctx, tx, id)
	})
	if err != nil {
		c.Fatal(err)
	}
	return id
}

// TestDeletedServers: administrators can list deleted servers until these are pruned. Lists with changes-since show deleted servers to all
// clients. No other request finds deleted servers.
func TestDeletedServers(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		c.at = "2.37"
		before := time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)
		alive := c.launched()
		gone := []string{c.removed(), c.removed()}
		expect := func(who, query string, want ...string) {
			c.Helper()
			got, refused := c.list(who, "servers", query)
			have := strings.Join(ids(got), " ")
			if refused != "" || len(got) != len(want) {
				c.Errorf("%s: %s: %s %v; want %v", who, query, refused, ids(got), want)
			}
			for _, id := range want {
				if !strings.Contains(have, id) {
					c.Errorf("%s: %s: %v; want %v", who, query, ids(got), want)
				}
			}
		}
		since := "changes-since=" + url.QueryEscape(before)
		expect("admin", "", alive)
		expect("member", "", alive)
		for _, query := range []string{"deleted=True", "status=DELETED", "status=deleted&deleted=1", "deleted=True&name=one&vm_state=deleted", "deleted=yes&sort_key=terminated_at&terminated_at=.", "deleted=True&" + since} {
			expect("admin", query, gone...)
		}
		expect("admin", "deleted=True&host=n1&image=70a599e0-31e7-49b7-b260-868f441e862b", gone...)
		expect("admin", "deleted=True&name=two")
		expect("admin", "deleted=True&status=ACTIVE")
		expect("admin", "status=ACTIVE&status=DELETED", alive)
		expect("admin", "deleted=False&"+since, alive)
		expect("member", "deleted=True", alive)
		expect("member", since, alive, gone[0], gone[1])
		expect("admin", since+"&status=ACTIVE", alive)
		expect("stranger", since)
		if _, refused := c.list("member", "servers", "status=DELETED"); !strings.HasPrefix(refused, "403") {
			c.Error(refused)
		}
		if list, refused := c.list("member", "servers", "sort_key=created_at&sort_dir=asc&marker="+gone[0]); refused != "" { // as in Nova, the marker may be a deleted server
			c.Errorf("the marker is a deleted server: %v %s", ids(list), refused)
		}
		if _, refused := c.list("stranger", "servers", "marker="+gone[0]); !strings.HasPrefix(refused, "400") {
			c.Errorf("the marker is a deleted server of another project: %s", refused)
		}
		first := must(c.list("admin", "servers", "deleted=True&limit=1"))
		expect("admin", "deleted=True&marker="+first[0].text("id"), strings.Trim(strings.ReplaceAll(gone[0]+gone[1], first[0].text("id"), ""), " "))
		for _, i := range must(c.list("admin", "servers", "deleted=True")) {
			if i["status"] != "DELETED" || i["OS-EXT-STS:vm_state"] != "deleted" || i["OS-EXT-STS:task_state"] != nil || i["OS-SRV-USG:terminated_at"] == nil || i["name"] != "one" ||
				i["OS-EXT-STS:power_state"] != 0. || i["OS-EXT-SRV-ATTR:host"] != "n1" || i["OS-EXT-SRV-ATTR:user_data"] != nil {
				c.Errorf("a deleted server is %v", i)
			}
		}
		for _, method := range []string{"GET", "DELETE"} {
			if status, reply := c.ask("admin", method, "/servers/"+gone[0], ""); status != 404 {
				c.Errorf("%s of a deleted server: %d %s", method, status, reply)
			}
		}
		if err := c.store.PruneDeleted(c.Context(), time.Hour); err != nil {
			c.Fatal(err)
		}
		expect("admin", "deleted=True", gone...)
		if err := c.store.PruneDeleted(c.Context(), 0); err != nil {
			c.Fatal(err)
		}
		expect("admin", "deleted=True")
		expect("member", since, alive)
	})
}
