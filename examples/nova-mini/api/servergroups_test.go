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

// group is a server group, as in a reply.
type group struct {
	ID, Name, Policy string
	Policies         []string
	Members          []string
	Project          string `json:"project_id"`
	Rules            map[string]int
}

// groups returns the groups of a list.
func (c *cloud) groups(version, who, query string) (out []group) {
	c.Helper()
	var reply struct {
		Groups []group `json:"server_groups"`
	}
	if err := json.Unmarshal([]byte(c.want(200, version, who, "GET", "/os-server-groups"+query, "")), &reply); err != nil {
		c.Fatal(err)
	}
	return reply.Groups
}

// addGroup creates a group with a request of version 2.64, and returns the group's id.
func (c *cloud) addGroup(who, name, policy string) string {
	c.Helper()
	var reply struct {
		Group group `json:"server_group"`
	}
	if err := json.Unmarshal([]byte(c.want(200, "2.64", who, "POST", "/os-server-groups", `{"server_group": {"name": "`+name+`", "policy": "`+policy+`"}}`)), &reply); err != nil {
		c.Fatal(err)
	}
	return reply.Group.ID
}

// inGroup returns the body of a request to create servers in a group. The parameter named more is JSON that is added to the server.
func inGroup(id, more string) string {
	return `{"server": {"name": "s", "flavorRef": "1", "imageRef": "x", "networks": "none"` + more + `}, "os:scheduler_hints": {"group": "` + id + `"}}`
}

// TestServerGroups: at each version, the requests and replies have the form of Nova's samples. A version also shows groups with a policy
// that requests of this version cannot name.
func TestServerGroups(t *testing.T) {
	t.Parallel()
	samples := samplesOf(t, "os-server-groups")
	eachCloud(t, func(c *cloud) {
		for _, v := range [][2]string{{"2.1", ""}, {"2.12", ""}, {"2.13", "v2.13/"}, {"2.15", "v2.13/"}, {"2.63", "v2.13/"}, {"2.64", "v2.64/"}, {"2.104", "v2.64/"}} {
			version, folder := v[0], "os-server-groups/"+v[1]+"server-groups-"
			reply := c.want(200, version, "member", "POST", "/os-server-groups", sample(c.T, folder+"post-req.json"))
			var made struct {
				Group group `json:"server_group"`
			}
			if err := json.Unmarshal([]byte(reply), &made); err != nil {
				c.Fatal(err)
			}
			for file, path := range map[string]string{"post-resp": "", "get-resp": "/" + made.Group.ID, "list-resp": "?"} {
				if path != "" {
					reply = c.want(200, version, "member", "GET", "/os-server-groups"+path, "")
				}
				want, ok := readSample(c.T, samples+"/"+v[1]+"server-groups-"+file+".json")
				if !ok {
					c.Fatalf("%s has no %s", folder, file)
				}
				compareSample(c.T, version+" "+file, want, reply, nil, map[string]bool{})
			}
			c.want(204, version, "member", "DELETE", "/os-server-groups/"+made.Group.ID, "")
			if reply := c.want(404, version, "member", "DELETE", "/os-server-groups/"+made.Group.ID, ""); !strings.Contains(reply, "Instance group "+made.Group.ID+" could not be found.") {
				c.Error(reply)
			}
		}
		c.compareWith(nil, "2.71", "member", "POST", "/os-server-groups", "servers/v2.71/server-groups-post-req", "servers/v2.71/server-groups-post-resp", 200)
		c.exec(`DELETE FROM server_groups`)
		soft := c.addGroup("member", "soft", "soft-affinity")
		if list := c.groups("2.1", "member", ""); len(list) != 1 || list[0].ID != soft || !slices.Equal(list[0].Policies, []string{"soft-affinity"}) {
			c.Errorf("at 2.1: %+v", list)
		}
		for _, bad := range []struct{ version, body, says string }{
			{"2.14", `"name": "x", "policies": ["soft-affinity"]`, "'soft-affinity' is not one of ['anti-affinity', 'affinity']"},
			{"2.15", `"name": "x", "policies": []`, "policies"},
			{"2.15", `"name": "x", "policies": ["affinity", "anti-affinity"]`, "policies"},
			{"2.64", `"name": "x", "policies": ["affinity"]`, "polic"},
			{"2.63", `"name": "x", "policy": "affinity"`, "polic"},
			{"2.64", `"name": "x", "policy": "legacy"`, "policy"},
			{"2.64", `"name": "", "policy": "affinity"`, "name"},
			{"2.64", `"name": "x", "policy": "affinity", "rules": {"max_server_per_host": 2}`, "Only anti-affinity policy supports rules."},
			{"2.64", `"name": "x", "policy": "soft-anti-affinity", "rules": {"max_server_per_host": 2}`, "Only anti-affinity policy supports rules."},
			{"2.64", `"name": "x", "policy": "anti-affinity", "rules": {"max_server_per_host": 0}`, "max_server_per_host"},
			{"2.64", `"name": "x", "policy": "anti-affinity", "rules": {"max": 1}`, "max"},
		} {
			if reply := c.want(400, bad.version, "member", "POST", "/os-server-groups", `{"server_group": {`+bad.body+`}}`); !strings.Contains(reply, bad.says) {
				c.Errorf("%s: %s, want %s", bad.body, reply, bad.says)
			}
		}
		for _, rules := range []string{`{}`, `{"max_server_per_host": "3"}`} {
			c.want(200, "2.64", "member", "POST", "/os-server-groups", `{"server_group": {"name": "x", "policy": "anti-affinity", "rules": `+rules+`}}`)
		}
		if list := c.groups("2.64", "member", ""); len(list) != 3 || len(list[1].Rules) != 0 || list[2].Rules["max_server_per_host"] != 3 {
			c.Errorf("rules: %+v", list)
		}
		c.want(200, "2.64", "member", "POST", "/os-server-groups", `{"server_group": {"name": "y", "policy": "affinity", "rules": {}}}`)
		c.want(403, "2.64", "nowhere", "POST", "/os-server-groups", `{"server_group": {"name": "y", "policy": "affinity"}}`)
	})
}

// TestListServerGroups: a list has the groups of the client's project, in pages. Only administrators can list the groups of all projects; for other clients
// the parameter all_projects has no effect, as in Nova.
func TestListServerGroups(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		for i := range 5 {
			c.addGroup("member", fmt.Sprint("g", i), "affinity")
		}
		other := c.addGroup("stranger", "theirs", "affinity")
		for _, tt := range []struct{ who, query, want string }{
			{"member", "", "g0 g1 g2 g3 g4"},
			{"member", "?limit=2", "g0 g1"},
			{"member", "?limit=2&offset=3", "g3 g4"},
			{"member", "?limit=9&limit=1", "g0"},
			{"member", "?limit=0&offset=4", "g4"},
			{"member", "?offset=9", ""},
			{"member", "?limit=99999999999999999999", "g0 g1 g2 g3 g4"}, // Nova has integers of any size
			{"member", "?offset=99999999999999999999", ""},
			{"member", "?all_projects=1", "g0 g1 g2 g3 g4"},
			{"stranger", "", "theirs"},
			{"boss", "", ""},
			{"boss", "?all_projects", "g0 g1 g2 g3 g4 theirs"},
			{"boss", "?all_projects=False&offset=4", "g4 theirs"},
		} {
			var got []string
			for _, g := range c.groups("2.64", tt.who, tt.query) {
				got = append(got, g.Name)
			}
			if strings.Join(got, " ") != tt.want {
				c.Errorf("%s %s: %v, want %s", tt.who, tt.query, got, tt.want)
			}
		}
		for _, query := range []string{"limit=-1", "offset=x", "limit="} {
			c.want(400, "2.1", "member", "GET", "/os-server-groups?"+query, "")
		}
		c.want(200, "2.74", "member", "GET", "/os-server-groups?x=1", "")
		c.want(400, "2.75", "member", "GET", "/os-server-groups?x=1", "")
		for _, method := range []string{"GET", "DELETE"} {
			if reply := c.want(404, "2.1", "member", method, "/os-server-groups/"+other, ""); !strings.Contains(reply, "Instance group "+other+" could not be found.") {
				c.Error(reply)
			}
		}
		c.want(200, "2.1", "boss", "GET", "/os-server-groups/"+other, "")
		c.want(204, "2.1", "boss", "DELETE", "/os-server-groups/"+other, "")
	})
}

// TestGroupMembers: a server is a member of the group of its hint until the server is removed. A client sees the members of its project.
// After the deletion of a group its servers are in no group.
func TestGroupMembers(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		id := c.addGroup("member", "g", "anti-affinity")
		members := func(who string) []string {
			c.Helper()
			var reply struct {
				Group group `json:"server_group"`
			}
			if err := json.Unmarshal([]byte(c.want(200, "2.64", who, "GET", "/os-server-groups/"+id, "")), &reply); err != nil {
				c.Fatal(err)
			}
			return reply.Group.Members
		}
		c.want(202, "2.37", "member", "POST", "/servers", inGroup(id, `, "min_count": 2`))
		c.want(202, "2.37", "boss", "POST", "/servers", inGroup(id, "")) // an administrator may use a group of another project
		if list := c.groups("2.64", "member", ""); len(list) != 1 || len(list[0].Members) != 2 || len(members("member")) != 2 || len(members("boss")) != 3 {
			c.Errorf("members: %+v, %v, %v", list, members("member"), members("boss"))
		}
		server := members("member")[0]
		show := func(version string) []any {
			var reply struct {
				Server struct {
					Groups []any `json:"server_groups"`
				}
			}
			if err := json.Unmarshal([]byte(c.want(200, version, "member", "GET", "/servers/"+server, "")), &reply); err != nil {
				c.Fatal(err)
			}
			return reply.Server.Groups
		}
		if got := show("2.71"); len(got) != 1 || got[0] != id || show("2.70") != nil {
			c.Errorf("the groups of the server are %v, at 2.70 %v", got, show("2.70"))
		}
		if err := db.Tx(c.Context(), c.db, func(ctx context.Context, tx *sqlx.Tx) error { return c.store.Remove(ctx, tx, members("member")[1]) }); err != nil {
			c.Fatal(err)
		}
		if got := members("member"); !slices.Equal(got, []string{server}) {
			c.Errorf("after the removal of a server the members are %v", got)
		}
		if err := db.Tx(c.Context(), c.db, func(ctx context.Context, tx *sqlx.Tx) error { return c.store.FailCreate(ctx, tx, server, "no", "no") }); err != nil {
			c.Fatal(err)
		}
		if got := members("member"); !slices.Equal(got, []string{server}) { // as in Nova, a server is a member until it is deleted
			c.Errorf("after a failed creation the members are %v", got)
		}
		for _, tt := range []struct{ who, hint, says string }{
			{"stranger", `"` + id + `"`, "Instance group " + id + " could not be found."},
			{"member", `"10000000-0000-4000-8000-000000000000"`, "Instance group 10000000-0000-4000-8000-000000000000 could not be found."},
			{"member", `["` + id + `", "` + id + `"]`, "at most one server group"},
			{"member", `"g"`, "group"},
		} {
			reply := c.want(400, "2.37", tt.who, "POST", "/servers", `{"server": {"name": "s", "flavorRef": "1", "imageRef": "x", "networks": "none"}, "os:scheduler_hints": {"group": `+tt.hint+`}}`)
			if !strings.Contains(reply, tt.says) {
				c.Errorf("%s: %s", tt.hint, reply)
			}
		}
		for _, hint := range []string{`[]`, `["` + id + `"]`} {
			c.want(202, "2.37", "member", "POST", "/servers", `{"server": {"name": "s", "flavorRef": "1", "imageRef": "x", "networks": "none"}, "os:scheduler_hints": {"group": `+hint+`}}`)
		}
		if got := members("member"); len(got) != 2 {
			c.Errorf("members: %v", got)
		}
		c.want(204, "2.64", "member", "DELETE", "/os-server-groups/"+id, "")
		if got := show("2.71"); len(got) != 0 {
			c.Errorf("after the deletion of the group the server is in %v", got)
		}
	})
}

// TestGroupQuotas: the numbers of groups of a project and of servers in a group never exceed their limits, even if requests run at the same time. The
// errors of refused requests are Nova's, and refused requests have no effect.
func TestGroupQuotas(t *testing.T) {
	t.Parallel()
	eachCloudLimited(t, store.Limits{store.ServerGroups: 3, store.GroupMembers: 4}, func(c *cloud) {
		together := func(n int, path, body, says string) map[int]int {
			var wg sync.WaitGroup
			var mu sync.Mutex
			count := map[int]int{}
			for range n {
				wg.Go(func() {
					status, reply := c.askAt("2.64", "member", "POST", path, body)
					if status == 403 && !strings.Contains(reply, says) {
						c.Errorf("%s, want %s", reply, says)
					}
					mu.Lock()
					defer mu.Unlock()
					count[status]++
				})
			}
			wg.Wait()
			return count
		}
		const group = `{"server_group": {"name": "x", "policy": "affinity"}}`
		if count := together(8, "/os-server-groups", group, "Quota exceeded, too many server groups."); count[200] != 3 || count[403] != 5 {
			c.Errorf("groups: %v", count)
		}
		c.want(200, "2.64", "stranger", "POST", "/os-server-groups", group) // another project
		if reply := c.want(200, "2.1", "member", "GET", "/limits", ""); !strings.Contains(reply, `"totalServerGroupsUsed":3`) {
			c.Error(reply)
		}
		list := c.groups("2.64", "member", "")
		c.want(204, "2.64", "member", "DELETE", "/os-server-groups/"+list[0].ID, "")
		c.want(200, "2.64", "member", "POST", "/os-server-groups", group)
		c.want(403, "2.64", "member", "POST", "/os-server-groups", group)

		body := inGroup(list[1].ID, "")
		if count := together(8, "/servers", body, "Quota exceeded, too many servers in group"); count[202] != 4 || count[403] != 4 {
			c.Errorf("members: %v", count)
		}
		if reply := c.want(403, "2.37", "member", "POST", "/servers", inGroup(list[2].ID, `, "min_count": 5`)); !strings.Contains(reply, "too many servers in group") {
			c.Error(reply)
		}
		c.want(202, "2.37", "member", "POST", "/servers", inGroup(list[2].ID, `, "min_count": 4`))
		members := c.groups("2.64", "member", "")[0].Members
		if len(members) != 4 {
			c.Errorf("members: %v", members)
		}
		if err := db.Tx(c.Context(), c.db, func(ctx context.Context, tx *sqlx.Tx) error { return c.store.Remove(ctx, tx, members[0]) }); err != nil {
			c.Fatal(err)
		}
		c.want(202, "2.37", "member", "POST", "/servers", body)
		c.want(403, "2.37", "member", "POST", "/servers", body)
		for range 4 { // another user of the project
			c.want(202, "2.37", "admin", "POST", "/servers", body)
		}
		c.want(403, "2.37", "admin", "POST", "/servers", body)
	})
}
