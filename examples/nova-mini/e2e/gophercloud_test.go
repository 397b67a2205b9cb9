package e2e_test

import (
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gophercloud/gophercloud/v2"
	api "github.com/gophercloud/gophercloud/v2/openstack"
)

// notHere has gophercloud's own tests of features that nova-mini does not have, with the missing feature.
var notHere = map[string]string{
	"TestAggregatesCRUD": "aggregates", "TestAggregatesAddRemoveHost": "aggregates", "TestAggregatesSetRemoveMetadata": "aggregates", "TestAggregatesList": "aggregates",
	"TestBootFromNewVolume": "volumes", "TestBootFromExistingVolume": "volumes", "TestBootFromMultiEphemeralServer": "ephemeral disks of a request", "TestAttachNewVolume": "volumes",
	"TestAttachExistingVolume": "volumes", "TestBootFromNewCustomizedVolume": "volumes", "TestVolumeAttachAttachment": "volumes",
	"TestHypervisorsGetUptime": "the uptime of a host, which drivers do not report",
	"TestMigrate":              "migrations", "TestLiveMigrate": "migrations", "TestQuotasetGet": "management of quotas", "TestQuotasetUpdateDelete": "management of quotas",
	"TestSecGroupsList": "the deprecated proxy of security groups", "TestSecGroupsCRUD": "the deprecated proxy of security groups",
	"TestSecGroupsRuleCreate": "the deprecated proxy of security groups", "TestSecGroupsAddGroupToServer": "the deprecated proxy of security groups",
}

// skipThemselves has tests that gophercloud itself skips, with the reasons.
var skipThemselves = map[string]string{
	"TestServersActionChangeAdminPassword": "needs a guest agent", "TestServersActionLock": "needs a client who is no administrator",
	"TestUsageSingleTenant": "to be fixed", "TestUsageAllTenants": "works only locally",
}

// TestGophercloud runs gophercloud's own acceptance tests of the compute API against a cloud with a real Keystone and a real Neutron.
func TestGophercloud(t *testing.T) {
	t.Parallel()
	if os.Getenv("ARMATURE_ACCEPT") == "" {
		t.Skip("run it with make accept; TestEachClient runs one of the tests")
	}
	o := newOpenStack(t, openstackWith{neutron: true, hosts: []string{"node-1"}}) // one host, because TestHypervisorListQuery expects its server on the first host
	p, err := api.AuthenticatedClient(t.Context(), gophercloud.AuthOptions{
		IdentityEndpoint: o.ks.Endpoint, Username: "admin", Password: o.adminPassword(), DomainID: "default", Scope: &gophercloud.AuthScope{ProjectName: "admin", DomainID: "default"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.HTTPClient.CloseIdleConnections)
	networks, err := api.NewNetworkV2(p, gophercloud.EndpointOpts{Region: "RegionOne"})
	if err != nil {
		t.Fatal(err)
	}
	o.newNetwork(networks, "private", "10.0.0.0/24")
	o.runGophercloud(t, ".", "^("+strings.Join(slices.Sorted(maps.Keys(notHere)), "|")+")$", 50) // the tests of notHere are skipped, because they may panic when they fail
}

// adminPassword returns the password of the user admin, whom some of gophercloud's tests need.
func (o *openstack) adminPassword() string {
	o.Helper()
	at, err := url.Parse(o.ks.URL)
	if err != nil {
		o.Fatal(err)
	}
	password, _ := at.User.Password()
	return password
}

// runGophercloud runs those of gophercloud's acceptance tests that match the regular expression run, and not the regular expression skip. At least as many as least must pass.
func (o *openstack) runGophercloud(t *testing.T, run, skip string, least int) {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "gophercloud.test")
	build := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-tags", "acceptance", "-o", bin, "github.com/gophercloud/gophercloud/v2/internal/acceptance/openstack/compute/v2")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	cmd := exec.CommandContext(t.Context(), bin, "-test.v", "-test.timeout", "10m", "-test.run", run, "-test.skip", skip)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "OS_AUTH_URL="+o.ks.Endpoint, "OS_USERNAME=admin", "OS_PASSWORD="+o.adminPassword(), "OS_PROJECT_NAME=admin", "OS_DOMAIN_NAME=Default",
		"OS_REGION_NAME=RegionOne", "OS_IMAGE_ID="+o.images[0], "OS_FLAVOR_ID=1", "OS_FLAVOR_ID_RESIZE=2", "OS_NETWORK_NAME=private", "OS_POOL_NAME=none", "OS_EXTGW_ID=none")
	out, _ := cmd.CombinedOutput() // some tests fail
	passed := 0
	for _, m := range regexp.MustCompile(`(?m)^--- (PASS|FAIL|SKIP): (\w+)`).FindAllStringSubmatch(string(out), -1) {
		switch {
		case m[1] == "PASS":
			passed++
		case m[1] == "FAIL" || skipThemselves[m[2]] == "":
			t.Errorf("%s: %s", m[2], m[1])
		}
	}
	t.Logf("%d pass", passed)
	if passed < least || t.Failed() {
		t.Errorf("%s", out)
	}
}
