package api_test

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// usage is a report of usage, as in a reply.
type usage struct {
	Tenant  string `json:"tenant_id"`
	Servers []struct {
		ID, Flavor, State string
		Instance          string `json:"instance_id"`
		Hours             float64
		Uptime            int64
		Memory            int `json:"memory_mb"`
		Disk              int `json:"local_gb"`
		VCPUs             int
		Started           string  `json:"started_at"`
		Ended             *string `json:"ended_at"`
	} `json:"server_usages"`
	Hours  float64 `json:"total_hours"`
	VCPUs  float64 `json:"total_vcpus_usage"`
	Memory float64 `json:"total_memory_mb_usage"`
	Disk   float64 `json:"total_local_gb_usage"`
	Start  string
	Stop   string
}

// usages returns the reports of a reply, which has a list of reports or a single report. The result next is the link to the next page, or "".
func (c *cloud) usages(version, who, path string) (list []usage, next string) {
	c.Helper()
	var reply struct {
		List  []usage                 `json:"tenant_usages"`
		One   usage                   `json:"tenant_usage"`
		Links []struct{ Href string } `json:"tenant_usages_links"`
		Link  []struct{ Href string } `json:"tenant_usage_links"`
	}
	if err := json.Unmarshal([]byte(c.want(200, version, who, "GET", "/os-simple-tenant-usage"+path, "")), &reply); err != nil {
		c.Fatal(err)
	}
	for _, l := range append(reply.Links, reply.Link...) {
		next = l.Href
	}
	if reply.List == nil {
		return []usage{reply.One}, next
	}
	return reply.List, next
}

// ran sets the time in which a server ran. The end is zero for a server that is not deleted.
func (c *cloud) ran(id string, start, end time.Time) {
	c.Helper()
	query, args := `UPDATE servers SET launched_at = ? WHERE id = ?`, []any{start, id}
	if !end.IsZero() {
		query, args = `UPDATE past_usage SET launched_at = ?, terminated_at = ? WHERE id = ?`, []any{start, end, id}
	}
	if _, err := c.db.ExecContext(c.Context(), query, args...); err != nil {
		c.Fatal(err)
	}
}

// TestUsage: a report has Nova's figures of all servers that ran in its period. Deleted servers are included, even after their rows are removed.
func TestUsage(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		at := func(hour int) time.Time { return time.Date(2026, 1, 2, hour, 0, 0, 0, time.UTC) }
		never := time.Time{}
		alive, gone, early := c.launched(), c.removed(), c.removed()
		c.ran(alive, at(3), never)
		c.ran(gone, at(5), at(7))
		c.ran(early, at(0), at(2))
		c.want(202, "2.1", "member", "POST", "/servers", `{"server": {"name": "waits", "flavorRef": "1", "imageRef": "70a599e0-31e7-49b7-b260-868f441e862b"}}`) // never ran
		if err := c.store.PruneDeleted(c.Context(), 0); err != nil {
			c.Fatal(err)
		}
		for _, tt := range []struct {
			start, end string
			hours      float64
			servers    int
		}{
			{"2026-01-02T04:00:00", "2026-01-02T08:00:00", 4 + 2, 2},
			{"2026-01-02T04:00:00.000000", "2026-01-02%2006:00:00.0", 2 + 1, 2},
			{"2026-01-02T01:30:00", "2026-01-02T03:30:00", 0.5 + 0.5, 2},
			{"2026-1-2T7:0:0", "2026-01-02T08:00:00", 1, 1},
			{"2025-01-01T00:00:00", "2025-02-01T00:00:00", 0, 0},
			{"2026-01-02T02:00:00", "2026-01-02T03:00:00", 0, 0},
		} {
			query := "?start=" + tt.start + "&end=" + tt.end
			one, _ := c.usages("2.1", "member", "/p1"+query)
			if u := one[0]; math.Abs(u.Hours-tt.hours) > 1e-9 || len(u.Servers) != tt.servers || u.VCPUs != u.Hours || math.Abs(u.Memory-512*tt.hours) > 1e-6 || u.Disk != u.Hours {
				c.Errorf("%s: %+v, want %v hours of %d servers", query, u, tt.hours, tt.servers)
			}
			list, _ := c.usages("2.1", "boss", query)
			if tt.servers == 0 && len(list) != 0 || tt.servers > 0 && (len(list) != 1 || list[0].Tenant != "p1" || list[0].Servers != nil || math.Abs(list[0].Hours-tt.hours) > 1e-9) {
				c.Errorf("%s: the list is %+v", query, list)
			}
		}
		one, _ := c.usages("2.40", "member", "/p1?start=2026-01-02T04:00:00&end=2026-01-02T08:00:00")
		if u := one[0]; u.Start != "2026-01-02T04:00:00.000000" || u.Stop != "2026-01-02T08:00:00.000000" {
			c.Errorf("%+v", u)
		}
		for _, s := range one[0].Servers {
			switch {
			case s.Instance == gone && s.State == "terminated" && s.Uptime == 7200 && s.Ended != nil && *s.Ended == "2026-01-02T07:00:00.000000":
			case s.Instance == alive && s.State == "active" && s.Uptime > 7200 && s.Ended == nil && s.Flavor == "m1.tiny" && s.Memory == 512 && s.Disk == 1 && s.VCPUs == 1:
			default:
				c.Errorf("%+v", s)
			}
		}
		for _, query := range []string{"", "?end=2099-01-01T00:00:00"} { // both periods end now
			if one, _ := c.usages("2.1", "member", "/p1"+query); len(one[0].Servers) != 1 || one[0].Hours > 1 || one[0].Stop > time.Now().Add(time.Hour).UTC().Format(time.RFC3339) {
				c.Errorf("%s: %+v", query, one)
			}
		}
		for query, says := range map[string]string{
			"start=yesterday":                                   "Invalid datetime string: Datetime is in invalid format",
			"start=2026-01-02":                                  "Invalid datetime string: Datetime is in invalid format",
			"start=2026-01-02%2004:00:00":                       "Invalid datetime string: Datetime is in invalid format",
			"start=2026-13-02T04:00:00":                         "Invalid datetime string: Datetime is in invalid format",
			"start=2026-01-02T04:00:00%2B01:00":                 "Invalid datetime string: Datetime is in invalid format",
			"end=2026-01-02T04:00:00":                           "Invalid start time. The start time cannot occur after the end time.",
			"start=2026-01-02T04:00:00&end=2026-01-02T04:00:00": "Invalid start time. The start time cannot occur after the end time.",
		} {
			for _, path := range []string{"?", "/p1?"} {
				if reply := c.want(400, "2.1", "admin", "GET", "/os-simple-tenant-usage"+path+query, ""); !strings.Contains(reply, says) {
					c.Errorf("%s: %s, want %s", query, reply, says)
				}
			}
		}
		c.want(403, "2.1", "member", "GET", "/os-simple-tenant-usage", "")
		c.want(403, "2.1", "member", "GET", "/os-simple-tenant-usage/p9", "")
		c.want(404, "2.1", "admin", "GET", "/os-simple-tenant-usage/", "") // without a project in the path
		if reply := c.want(200, "2.1", "boss", "GET", "/os-simple-tenant-usage/p9", ""); reply != "{\"tenant_usage\":{}}\n" && reply != `{"tenant_usage":{}}` {
			c.Error(reply)
		}
		c.want(200, "2.74", "admin", "GET", "/os-simple-tenant-usage?x=1", "")
		c.want(400, "2.75", "admin", "GET", "/os-simple-tenant-usage?x=1", "")
		c.want(200, "2.75", "admin", "GET", "/os-simple-tenant-usage?detailed=1", "")
		c.want(400, "2.75", "admin", "GET", "/os-simple-tenant-usage/p1?detailed=1", "")

		if err := c.store.PruneUsage(c.Context(), 0); err != nil {
			c.Fatal(err)
		}
		if one, _ := c.usages("2.1", "member", "/p1?start=2026-01-02T04:00:00&end=2026-01-02T08:00:00"); one[0].Hours != 4 {
			c.Errorf("after the retention: %+v", one)
		}
	})
}

// lastOf returns the highest id of the servers of a project.
func (c *cloud) lastOf(project string) (id string) {
	c.Helper()
	if err := c.db.GetContext(c.Context(), &id, `SELECT MAX(id) FROM servers WHERE project_id = ?`, project); err != nil {
		c.Fatal(err)
	}
	return id
}

// TestUsagePages: since 2.40 a page has a limited number of servers, ordered by project and id. Before 2.40, a report has all servers.
func TestUsagePages(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		for i := range 5 {
			id := c.launched()
			if _, err := c.db.ExecContext(c.Context(), `UPDATE servers SET project_id = ?, launched_at = '2026-01-01 00:00:00' WHERE id = ?`, fmt.Sprint("p", 2+i%2), id); err != nil {
				c.Fatal(err)
			}
		}
		const query = "?start=2026-01-02T00:00:00&end=2026-01-02T01:00:00&detailed=1"
		for _, version := range []string{"2.1", "2.39"} {
			if list, next := c.usages(version, "boss", query+"&limit=2"); len(list) != 2 || list[0].Hours != 3 || list[1].Hours != 2 || next != "" {
				c.Errorf("%s: %+v %s", version, list, next)
			}
		}
		seen, pages := map[string]bool{}, 0
		for path := query + "&limit=2"; path != ""; pages++ {
			list, next := c.usages("2.40", "boss", path)
			for _, u := range list {
				for _, s := range u.Servers {
					if seen[s.Instance] || s.Hours != 1 {
						c.Errorf("%+v", s)
					}
					seen[s.Instance] = true
				}
			}
			if path = ""; next != "" {
				_, q, _ := strings.Cut(next, "?")
				path = "?" + q
			}
		}
		if list, next := c.usages("2.40", "boss", query+"&marker="+c.lastOf("p3")); len(list) != 0 || next != "" { // clients read pages until they get an empty page
			c.Errorf("after the last server: %+v %s", list, next)
		}
		if len(seen) != 5 || pages != 3 {
			c.Errorf("%d servers on %d pages", len(seen), pages)
		}
		if one, next := c.usages("2.40", "boss", "/p2"+query[:len(query)-len("&detailed=1")]+"&limit=2"); len(one[0].Servers) != 2 || !strings.Contains(next, "/os-simple-tenant-usage/p2?") {
			c.Errorf("%+v %s", one, next)
		}
		if reply := c.want(400, "2.40", "boss", "GET", "/os-simple-tenant-usage"+query+"&marker=x", ""); !strings.Contains(reply, "Marker x could not be found.") {
			c.Error(reply)
		}
	})
}

// TestUsageSamples: the replies have the form of Nova's samples.
func TestUsageSamples(t *testing.T) {
	t.Parallel()
	dir := samplesOf(t, "os-simple-tenant-usage")
	eachCloud(t, func(c *cloud) {
		c.ran(c.launched(), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), time.Time{})
		for _, tt := range []struct{ version, file, path string }{
			{"2.1", "simple-tenant-usage-get", "?"},
			{"2.1", "simple-tenant-usage-get-detail", "?detailed=1&"},
			{"2.1", "simple-tenant-usage-get-specific", "/p1?"},
			{"2.40", "v2.40/simple-tenant-usage-get", "?limit=1&"},
			{"2.40", "v2.40/simple-tenant-usage-get-all", "?detailed=1&"},
			{"2.40", "v2.40/simple-tenant-usage-get-detail", "?detailed=1&limit=1&"},
			{"2.40", "v2.40/simple-tenant-usage-get-specific", "/p1?limit=1&"},
			{"2.104", "v2.40/simple-tenant-usage-get-specific", "/p1?limit=1&"},
		} {
			want, ok := readSample(c.T, dir+"/"+tt.file+".json")
			if !ok {
				c.Fatal(tt.file)
			}
			reply := c.want(200, tt.version, "admin", "GET", "/os-simple-tenant-usage"+tt.path+"start=2026-01-02T00:00:00&end=2026-01-02T01:00:00", "")
			compareSample(c.T, tt.version+" "+tt.file, want, reply, nil, map[string]bool{})
		}
	})
}
