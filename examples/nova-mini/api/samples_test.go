package api_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/fault"
	"github.com/armature-go/armature/service/api"
)

// sampleServer is a server with the fields that Nova has for it in each microversion up to 2.96.
type sampleServer struct {
	AccessIPv4  string                     `json:"accessIPv4"`
	AccessIPv6  string                     `json:"accessIPv6"`
	Addresses   map[string][]sampleAddress `json:"addresses"`
	ConfigDrive string                     `json:"config_drive"`
	Created     string                     `json:"created" format:"date-time"`
	Description *string                    `json:"description" since:"2.19"`
	DiskConfig  string                     `json:"OS-DCF:diskConfig" enum:"AUTO,MANUAL"`
	Flavor      sampleBookmark             `json:"flavor" until:"2.46"`
	BootFlavor  sampleFlavor               `json:"boot_flavor" name:"flavor" since:"2.47"`
	Groups      []string                   `json:"server_groups" since:"2.71"`
	HostID      string                     `json:"hostId"`
	ID          string                     `json:"id" format:"uuid"`
	Image       sampleBookmark             `json:"image"`
	KeyName     *string                    `json:"key_name"`
	LaunchedAt  *string                    `json:"OS-SRV-USG:launched_at"`
	Links       []api.Link                 `json:"links"`
	Locked      bool                       `json:"locked" since:"2.9"`
	LockReason  *string                    `json:"locked_reason" since:"2.73"`
	Metadata    map[string]string          `json:"metadata"`
	Name        string                     `json:"name"`
	PinnedZone  *string                    `json:"pinned_availability_zone" since:"2.96"`
	PowerState  int                        `json:"OS-EXT-STS:power_state"`
	Progress    int                        `json:"progress"`
	SecGroups   []sampleName               `json:"security_groups"`
	Status      string                     `json:"status"`
	Tags        []string                   `json:"tags" since:"2.26"`
	TaskState   *string                    `json:"OS-EXT-STS:task_state"`
	TenantID    string                     `json:"tenant_id"`
	Terminated  *string                    `json:"OS-SRV-USG:terminated_at"`
	Trusted     *[]string                  `json:"trusted_image_certificates" since:"2.63"`
	Updated     string                     `json:"updated" format:"date-time"`
	UserID      string                     `json:"user_id"`
	VMState     string                     `json:"OS-EXT-STS:vm_state"`
	Volumes     []sampleVolume             `json:"os-extended-volumes:volumes_attached"`
	Zone        string                     `json:"OS-EXT-AZ:availability_zone"`

	Host           *string `json:"OS-EXT-SRV-ATTR:host" rule:"extended"`
	HypervisorHost *string `json:"OS-EXT-SRV-ATTR:hypervisor_hostname" rule:"extended"`
	InstanceName   string  `json:"OS-EXT-SRV-ATTR:instance_name" rule:"extended"`
	ReservationID  string  `json:"OS-EXT-SRV-ATTR:reservation_id" since:"2.3" rule:"extended"`
	LaunchIndex    int     `json:"OS-EXT-SRV-ATTR:launch_index" since:"2.3" rule:"extended"`
	KernelID       string  `json:"OS-EXT-SRV-ATTR:kernel_id" since:"2.3" rule:"extended"`
	RamdiskID      string  `json:"OS-EXT-SRV-ATTR:ramdisk_id" since:"2.3" rule:"extended"`
	RootDevice     *string `json:"OS-EXT-SRV-ATTR:root_device_name" since:"2.3" rule:"extended"`
	UserData       *string `json:"OS-EXT-SRV-ATTR:user_data" since:"2.3" rule:"extended"`
	Hostname       string  `json:"OS-EXT-SRV-ATTR:hostname" since:"2.3" until:"2.89" rule:"extended"`
	AnyHostname    string  `json:"any_hostname" name:"OS-EXT-SRV-ATTR:hostname" since:"2.90"`
	HostStatus     string  `json:"host_status" since:"2.16" rule:"host_status"`
}

type sampleAddress struct {
	Addr    string `json:"addr"`
	MAC     string `json:"OS-EXT-IPS-MAC:mac_addr"`
	Type    string `json:"OS-EXT-IPS:type" enum:"fixed,floating"`
	Version int    `json:"version" enum:"4,6"`
}

type sampleBookmark struct {
	ID    string     `json:"id"`
	Links []api.Link `json:"links"`
}

type sampleFlavor struct {
	Disk         int               `json:"disk"`
	Ephemeral    int               `json:"ephemeral"`
	ExtraSpecs   map[string]string `json:"extra_specs"`
	OriginalName string            `json:"original_name"`
	RAM          int               `json:"ram"`
	Swap         int               `json:"swap"`
	VCPUs        int               `json:"vcpus"`
}

type sampleName struct {
	Name string `json:"name"`
}

type sampleVolume struct {
	ID              string `json:"id"`
	DeleteWithOwner bool   `json:"delete_on_termination" since:"2.3"`
}

type sampleBody struct {
	Server sampleServer `json:"server"`
}

// TestSamples: one type reads and writes Nova's published samples of a server in four microversions, exactly. Without a field of
// the type, a sample is refused.
func TestSamples(t *testing.T) {
	t.Parallel()
	dir := filepath.Join("..", "..", "..", "..", "shared", "nova-api", "samples", "servers")
	if _, err := os.Stat(dir); err != nil {
		t.Skip("shared/nova-api is not beside this tree")
	}
	samples := map[string]string{"2.1": ".", "2.19": "v2.19", "2.47": "v2.47", "2.96": "v2.96"}
	for version, folder := range samples {
		raw, err := os.ReadFile(filepath.Join(dir, folder, "server-get-resp.json"))
		if err != nil {
			t.Fatal(err)
		}
		m := api.New(api.Config{
			Microversions: &api.Microversions{Service: "compute", Min: "2.1", Max: "2.96"},
			Enforce: func(_ context.Context, rule string, _ map[string]any) error {
				if version == "2.96" { // a user's sample; the others are an administrator's
					return fault.New(fault.Denied, "Policy doesn't allow %s to be performed.", rule)
				}
				return nil
			},
		})
		api.Handle(m, "POST /servers", func(_ context.Context, r *api.Request[sampleBody]) (sampleBody, error) { return r.Body, nil })
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/servers", strings.NewReader(string(raw)))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("OpenStack-API-Version", "compute "+version)
		w := httptest.NewRecorder()
		m.ServeHTTP(w, r)
		var want, got any
		if err := json.Unmarshal(raw, &want); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); w.Code != http.StatusOK || diff != "" {
			t.Errorf("%s: status %d (-sample +got):\n%s", version, w.Code, diff)
		}
	}
	// Each field is in a sample: a type without it does not fit.
	for field := range reflect.TypeFor[sampleServer]().Fields() {
		name := field.Tag.Get("name")
		if name == "" {
			name = field.Tag.Get("json")
		}
		found := false
		for _, folder := range samples {
			raw, _ := os.ReadFile(filepath.Join(dir, folder, "server-get-resp.json"))
			found = found || strings.Contains(string(raw), `"`+name+`":`)
		}
		if !found {
			t.Errorf("field %s (%s) is in no sample", field.Name, name)
		}
	}
}
