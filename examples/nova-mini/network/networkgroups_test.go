package network_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/gophercloud/gophercloud/v2"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/security/groups"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/extensions/security/rules"
	"github.com/gophercloud/gophercloud/v2/openstack/networking/v2/ports"

	"github.com/armature-go/armature/examples/nova-mini/network"
	"github.com/armature-go/armature/fault"
)

func testGroupsByName(t *testing.T, c *neutronTest) {
	t.Helper()
	if got, err := c.Groups(t.Context(), c.token, c.project, []string{"default"}); len(got) != 1 || got[0].Name != "default" || err != nil {
		t.Errorf("groups: %v, %v", got, err)
	}
	if _, err := c.Groups(t.Context(), c.token, c.project, []string{"nothing"}); !errors.Is(err, fault.NotFound) || !strings.Contains(err.Error(), "Security group nothing not found for project") {
		t.Errorf("a group that does not exist: %v", err)
	}
}

// changeGroups adds groups to the ports of a server and removes them. It returns a new group of the project.
func (c *neutronTest) changeGroups(t *testing.T, s network.Server, first []network.Interface) *groups.SecGroup {
	t.Helper()
	secured, err := groups.Create(t.Context(), c.ada, groups.CreateOpts{Name: "second"}).Extract()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ports.Update(t.Context(), c.ada, c.mine.ID, ports.UpdateOpts{SecurityGroups: &[]string{secured.ID, c.mine.SecurityGroups[0]}}).Extract(); err != nil {
		t.Fatal(err)
	}
	if got, err := c.GroupsOf(t.Context(), c.token, s.ID); err != nil || len(got.Groups) != 2 || got.Groups[0].ID == got.Groups[1].ID || len(got.Groups[0].Rules)+len(got.Groups[1].Rules) < 3 || got.Sources[secured.ID].Name != "second" {
		t.Errorf("the groups of the ports: %+v, %v", got, err)
	}
	if got, err := c.GroupNames(t.Context(), c.token, []string{first[0].Port.ID, c.mine.ID, c.theirs.ID, "gone"}); err != nil || len(got) != 2 || !slices.Equal(got[first[0].Port.ID], []string{"default"}) ||
		len(got[c.mine.ID]) != 2 || !slices.Contains(got[c.mine.ID], "default") || !slices.Contains(got[c.mine.ID], "second") {
		t.Errorf("the names of the groups of ports: %v, %v", got, err)
	}
	names := func(list []network.Group, err error) string {
		var out []string
		for _, g := range list {
			out = append(out, g.Name)
		}
		slices.Sort(out)
		return strings.Join(append(out, fmt.Sprint(err)), " ")
	}
	const none = "the server of no port"
	for _, tt := range []struct {
		name, got, want string
	}{
		{"add a group", names(c.AddGroup(t.Context(), c.token, c.project, s.ID, "second")), "default second <nil>"},
		{"add it again", names(c.AddGroup(t.Context(), c.token, c.project, s.ID, secured.ID)), "default second <nil>"},
		{"add an unknown group", names(c.AddGroup(t.Context(), c.token, c.project, s.ID, "nothing")), "Security group nothing is not found for project " + c.project},
		{"add without a port", names(c.AddGroup(t.Context(), c.token, c.project, none, "second")), "instance_id " + none + " could not be found as device id on any ports"},
		{"remove the default", names(c.RemoveGroup(t.Context(), c.token, c.project, s.ID, "default")), "second <nil>"},
		{"remove it again", names(c.RemoveGroup(t.Context(), c.token, c.project, s.ID, "default")), "Security group default not associated with the instance " + s.ID},
		{"remove the other", names(c.RemoveGroup(t.Context(), c.token, c.project, s.ID, "second")), "<nil>"},
		{"add the default", names(c.AddGroup(t.Context(), c.token, c.project, s.ID, "default")), "default <nil>"},
	} {
		if tt.got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, tt.got, tt.want)
		}
	}
	return secured
}

// readGroups reads the groups of ports, of the project, and a group with the sources of its rules.
func (c *neutronTest) readGroups(t *testing.T, secured *groups.SecGroup) {
	t.Helper()
	if got, err := c.GroupsOf(t.Context(), c.token, "another"); err != nil || len(got.Groups) != 0 {
		t.Errorf("the groups of no port: %+v, %v", got, err)
	}
	if got, err := c.ProjectGroups(t.Context(), c.token, c.project); err != nil || len(got.Groups) != 2 || got.Sources[secured.ID].TenantID != c.project {
		t.Errorf("the groups of the project: %+v, %v", got, err)
	}
	if _, err := rules.Create(t.Context(), c.ada, rules.CreateOpts{SecGroupID: secured.ID, Direction: rules.DirIngress, EtherType: rules.EtherType4, RemoteGroupID: c.mine.SecurityGroups[0]}).Extract(); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Group(t.Context(), c.token, secured.ID); err != nil || len(got.Groups) != 1 || got.Groups[0].Name != "second" || got.Sources[c.mine.SecurityGroups[0]].Name != "default" {
		t.Errorf("one group with the source of a rule: %+v, %v", got, err)
	}
	for who, get := range map[string]func() (network.GroupList, error){
		"a group that does not exist": func() (network.GroupList, error) { return c.Group(t.Context(), c.token, c.private) },
		"a group of another project": func() (network.GroupList, error) {
			return c.Group(t.Context(), c.keystone.Token("bob", &gophercloud.AuthScope{ProjectID: c.other}), secured.ID)
		},
	} {
		if got, err := get(); !errors.Is(err, fault.NotFound) || !strings.HasSuffix(err.Error(), " does not exist") {
			t.Errorf("%s: %+v, %v", who, got, err)
		}
	}
}
