package api_test

import (
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/api"
)

// TestNameTemplates: a template that does not give unique names is refused, and so is one with values that servers do not have.
func TestNameTemplates(t *testing.T) {
	t.Parallel()
	for text, says := range map[string]string{
		api.DefaultNameTemplate: "",
		"%(uuid)s":              "",
		"vm_%(hostname)s.%(launch_index)d-%(uuid)s": "",
		"instance-%08x":               "has %08x, which servers do not have",
		"%(id)d-%(uuid)s":             "has %(id)d",
		"%(uuid)d":                    "has %(uuid)d",
		"%(uuid)s%":                   "has %,",
		"%(hostname)s":                "could have the same name",
		"":                            "could have the same name",
		"a b %(uuid)s":                "other characters",
		"../%(uuid)s":                 "other characters",
		"-%(uuid)s":                   "begin with another one than a letter or digit",
		strings.Repeat("%(uuid)s", 8): "more than 255 bytes",
	} {
		if _, err := api.ParseNameTemplate(text); says == "" && err != nil || says != "" && (err == nil || !strings.Contains(err.Error(), says)) {
			t.Errorf("%q: %v, want %q", text, err, says)
		}
	}
}

// TestInstanceNames: the name of a server on its host follows the template at the time of the server's creation. Administrators
// see this name, and the driver gets it.
func TestInstanceNames(t *testing.T) {
	t.Parallel()
	names, err := api.ParseNameTemplate("%(project_id)s.%(hostname)s-%(launch_index)d-%(uuid)s")
	if err != nil {
		t.Fatal(err)
	}
	eachCloudOf(t, api.Rules(), nil, nil, func(c *cloud) {
		id := c.newServer("member", `"min_count": 1`)
		want := "p1.s-0-" + id
		if srv := c.shown("2.1", "admin", id); srv.text("OS-EXT-SRV-ATTR:instance_name") != want {
			c.Errorf("%v, want %s", srv["OS-EXT-SRV-ATTR:instance_name"], want)
		}
		if srv, err := c.store.ServerToBuild(c.Context(), id); err != nil || srv.Spec().InstanceName != want {
			c.Errorf("%+v, %v", srv, err)
		}
		if _, err := c.db.ExecContext(c.Context(), `UPDATE servers SET instance_name = NULL`); err != nil { // as those of an earlier release
			c.Fatal(err)
		}
		if srv := c.shown("2.1", "admin", id); srv.text("OS-EXT-SRV-ATTR:instance_name") != "instance-"+id {
			c.Errorf("%v", srv["OS-EXT-SRV-ATTR:instance_name"])
		}
	}, func(cfg *api.Config) { cfg.InstanceNames = names })
}
