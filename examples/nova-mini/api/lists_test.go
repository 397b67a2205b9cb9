package api_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/armature-go/armature/examples/nova-mini/compute"
	"github.com/armature-go/armature/examples/nova-mini/store"
)

// These are Nova's names at microversion 2.1 (nova/api/openstack/compute/schemas, servers
// and flavors): filters, joined tables that Nova refuses, sort keys, and sort keys that Nova
// ignores.
const (
	novaFilters = `user_id project_id tenant_id launch_index image_ref image kernel_id ramdisk_id hostname key_name power_state
		vm_state task_state host node flavor reservation_id launched_at terminated_at availability_zone name display_name description
		display_description locked_by uuid root_device_name config_drive access_ip_v4 access_ip_v6 auto_disk_config progress soft_deleted
		deleted status changes-since ip ip6 created_at`
	novaTagFilters = `tags tags-any not-tags not-tags-any`
	novaJoined     = `block_device_mapping services metadata system_metadata info_cache security_groups pci_devices _anything`
	novaSortKeys   = `access_ip_v4 access_ip_v6 auto_disk_config availability_zone config_drive created_at display_description
		display_name host hostname image_ref instance_type_id kernel_id key_name launch_index launched_at locked_by node power_state
		progress project_id ramdisk_id root_device_name task_state terminated_at updated_at user_id uuid vm_state`
	novaIgnored = `architecture cell_name cleaned default_ephemeral_device default_swap_device deleted deleted_at disable_terminate
		ephemeral_gb ephemeral_key_uuid id key_data launched_on locked memory_mb os_type reservation_id root_gb shutdown_terminate
		user_data vcpus vm_mode`
	novaFlavorSorts = `created_at description disabled ephemeral_gb flavorid id is_public memory_mb name root_gb rxtx_factor swap
		updated_at vcpu_weight vcpus`
)

// novaMembers are the filters that Nova's members may use at microversion 2.37. Other filters have no effect for members.
const novaMembers = `reservation_id name status image flavor ip ip6 changes-since ` + novaTagFilters

// checkOrder checks each of Nova's sort keys of a list. `make accept` checks each key with asc, with desc and without a direction; `make
// test` checks one of the three.
func (c *cloud) checkOrder(kind, query string, keys []string, shown map[string]string, dir, first, firstShown string) {
	c.Helper()
	for i, key := range keys {
		directions := []string{"asc", "desc", ""}
		if os.Getenv("ARMATURE_ACCEPT") == "" {
			directions = directions[i%3 : i%3+1]
		}
		for _, how := range directions {
			q := query + "sort_key=" + key
			if how != "" {
				q += "&sort_dir=" + how
			}
			got, refused := c.list("admin", kind, q)
			attribute, done := shown[key]
			if !done {
				if !strings.HasPrefix(refused, "400") || !strings.Contains(refused, "'"+key+"' is not one of [") {
					c.Errorf("%s: %s, %v; want a refusal of %s", q, refused, ids(got), key)
				}
				continue
			}
			down := cmp.Or(how, dir) == "desc"
			if refused != "" || len(got) < 5 || !slices.IsSortedFunc(got, func(a, b item) int {
				out := cmp.Or(compare(a[attribute], b[attribute]), compare(a[firstShown], b[firstShown]), compare(a["id"], b["id"]))
				if down {
					return -out
				}
				return out
			}) {
				c.Errorf("%s: %s; not by %s and then by %s: %v", q, refused, key, first, got)
			}
			for _, limit := range []int{7, len(got)} {
				var paged []item
				for marker := ""; ; marker = paged[len(paged)-1].text("id") {
					page := fmt.Sprintf("%s&limit=%d", q, limit)
					if marker != "" {
						page += "&marker=" + url.QueryEscape(marker)
					}
					some, refused := c.list("admin", kind, page)
					if refused != "" || len(some) > limit {
						c.Fatalf("%s: %s, %d items", page, refused, len(some))
					}
					if len(some) == 0 {
						break
					}
					paged = append(paged, some...)
				}
				if diff := gocmp.Diff(ids(got), ids(paged)); diff != "" {
					c.Errorf("%s: pages of %d (-whole +pages):\n%s", q, limit, diff)
				}
			}
		}
	}
}

// tagged returns the number of tags in the list, separated by commas, that a server has.
func tagged(i item, list string) (n int) {
	have, _ := i["tags"].([]any)
	for tag := range strings.SplitSeq(list, ",") {
		if slices.Contains(have, any(tag)) {
			n++
		}
	}
	return n
}

// compare compares two values of replies. A missing value is the smallest.
func compare(a, b any) int {
	if m, ok := a.(map[string]any); ok {
		a = m["id"]
	}
	if m, ok := b.(map[string]any); ok {
		b = m["id"]
	}
	truth := map[any]float64{true: 1, false: 0, "AUTO": 1, "MANUAL": 0, "True": 1}
	for _, v := range []*any{&a, &b} {
		if n, ok := truth[*v]; ok {
			*v = n
		}
	}
	x, isX := a.(float64)
	y, isY := b.(float64)
	switch {
	case isX || isY: // "" counts as 0
		return cmp.Compare(x, y)
	case a == nil || b == nil:
		return cmp.Compare(truth[b == nil], truth[a == nil])
	}
	return strings.Compare(fmt.Sprint(a), fmt.Sprint(b))
}

// TestLimit: with limit=0 a list is empty and has no next page, as in Nova. A filter does not change the length of pages.
func TestLimit(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		c.addServers()
		for _, path := range []string{"/servers", "/servers/detail", "/flavors", "/flavors/detail"} {
			for _, query := range []string{"?limit=0", "?limit=0&sort_key=flavorid", "?limit=0&sort_key=uuid", "?limit=0&name=web"} {
				if strings.Contains(query, "uuid") == strings.HasPrefix(path, "/flavors") && strings.Contains(query, "_key") {
					continue
				}
				kind, _, _ := strings.Cut(strings.Trim(path, "/"), "/")
				if status, got := c.ask("admin", "GET", path+query, ""); status != 200 || got != `{"`+kind+`":[]}` {
					c.Errorf("%s%s = %d %.300s", path, query, status, got)
				}
			}
		}
		var all []string
		want, _ := c.list("member", "servers", "name=web-")
		for next := "/servers?limit=2&name=web-"; next != ""; {
			_, got := c.ask("member", "GET", next, "")
			var page struct {
				Servers []item
				Links   []struct{ Href string } `json:"servers_links"`
			}
			if err := json.Unmarshal([]byte(got), &page); err != nil {
				c.Fatal(err)
			}
			all = append(all, ids(page.Servers)...)
			if next = ""; len(page.Links) > 0 {
				_, next, _ = strings.Cut(page.Links[0].Href, "/v2.1")
			}
		}
		if diff := gocmp.Diff(ids(want), all); diff != "" || len(want) < 4 {
			c.Errorf("by the links (-want +got):\n%s", diff)
		}
	})
}

// TestFlavorLists checks filters, sort keys and pages of flavors.
func TestFlavorLists(t *testing.T) {
	t.Parallel()
	shown := map[string]string{
		"flavorid": "id", "name": "name", "memory_mb": "ram", "root_gb": "disk", "ephemeral_gb": "OS-FLV-EXT-DATA:ephemeral", "swap": "swap",
		"vcpus": "vcpus", "is_public": "os-flavor-access:is_public", "rxtx_factor": "rxtx_factor", "description": "description", "disabled": "OS-FLV-DISABLED:disabled",
		"vcpu_weight": "no such attribute",
	}
	eachCloud(t, func(c *cloud) {
		for i, name := range []string{"small", "Small", "x y", "tiny"} {
			f := &store.Flavor{ID: name, Name: name, VCPUs: 1 + i%2, MemoryMiB: 256 << i, DiskGiB: 5 * (i % 3), EphemeralGiB: i % 2, SwapMiB: i % 3, RxTxFactor: 1 / float64(1+i%2), Public: i%2 == 0}
			if err := c.store.CreateFlavor(c.Context(), f); err != nil {
				c.Fatal(err)
			}
		}
		if _, err := c.store.DescribeFlavor(c.Context(), "Small", nil); err != nil {
			c.Fatal(err)
		}
		// No reply shows the values of these sort keys. The flavors that the migrations create have no times.
		orders := map[string][]string{
			"created_at": {"1", "2", "3", "4", "5", "small", "Small", "x y", "tiny"},
			"id":         {"1", "2", "3", "4", "5", "small", "Small", "x y", "tiny"},
			"updated_at": {"1", "2", "3", "4", "5", "small", "tiny", "x y", "Small"},
		}
		for key, want := range orders {
			var got []string
			for len(got) < 20 {
				query := "is_public=None&limit=2&sort_key=" + key
				if len(got) > 0 {
					query += "&marker=" + url.QueryEscape(got[len(got)-1])
				}
				page, refused := c.list("admin", "flavors", query)
				if refused != "" {
					c.Fatal(refused)
				}
				if len(page) == 0 {
					break
				}
				got = append(got, ids(page)...)
			}
			if diff := gocmp.Diff(want, got); diff != "" {
				c.Errorf("by %s (-want +got):\n%s", key, diff)
			}
		}
		keys := slices.DeleteFunc(strings.Fields(novaFlavorSorts), func(key string) bool { return orders[key] != nil })
		c.checkOrder("flavors", "is_public=None&", keys, shown, "asc", "flavorid", "id")
		every, _ := c.list("admin", "flavors", "is_public=none")
		if len(every) != 9 {
			c.Fatalf("%d flavors", len(every))
		}
		atLeast := func(attribute string, least float64) func(item) bool {
			return func(i item) bool {
				got, _ := i[attribute].(float64)
				return i["os-flavor-access:is_public"] == true && got >= least
			}
		}
		public := func(want bool) func(item) bool {
			return func(i item) bool { return i["os-flavor-access:is_public"] == want }
		}
		for query, matches := range map[string]func(item) bool{
			"": public(true), "is_public=True": public(true), "is_public=1": public(true), "is_public=F": public(false), "is_public=false": public(false),
			"is_public=NONE": func(item) bool { return true },
			"minRam=512":     atLeast("ram", 512), "minRam=2049": atLeast("ram", 2049), "minDisk=20": atLeast("disk", 20), "minDisk=-1": public(true),
			"minRam=99999999999999999999": func(item) bool { return false },
			"minRam=512&minDisk=21&x=1":   atLeast("disk", 21),
		} {
			want := slices.DeleteFunc(slices.Clone(every), func(i item) bool { return !matches(i) })
			got, refused := c.list("admin", "flavors", query)
			if diff := gocmp.Diff(ids(want), ids(got)); diff != "" || refused != "" {
				c.Errorf("%s: %s (-want +got):\n%s", query, refused, diff)
			}
		}
		for query, says := range map[string]string{
			"minRam=1GB": "Invalid minRam filter [1GB]", "minDisk=": "Invalid minDisk filter []", "minDisk=1+2": "Invalid minDisk filter [1 2]",
			"is_public=perhaps": "Invalid is_public filter [perhaps]", "sort_dir=up": "'up' is not one of ['asc', 'desc']", "marker=none": "marker [none] not found",
		} {
			if _, refused := c.list("admin", "flavors", query); !strings.HasPrefix(refused, "400") || !strings.Contains(refused, says) {
				c.Errorf("%s: %s; want %s", query, refused, says)
			}
		}
	})
}

// TestHostLists: lists of services and hypervisors have the filters that Nova has at 2.1. Other parameters are ignored.
func TestHostLists(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		for _, kind := range []string{store.ComputeBinary, store.ConductorBinary} {
			for _, host := range []string{"n1", "n2"} {
				if _, err := c.db.ExecContext(c.Context(), `INSERT INTO members (kind, host, id, version, data, disabled, disabled_reason, forced_down, departed, joined_at, seen_at, created_at)
					VALUES (?, ?, ?, 1, '', FALSE, '', FALSE, FALSE, ?, ?, ?)`, kind, host, kind[5:]+host, time.Now().UTC(), time.Now().UTC(), time.Now().UTC()); err != nil {
					c.Fatal(err)
				}
			}
		}
		for _, host := range []string{"n1", "n2"} {
			if err := c.store.ReportHost(c.Context(), &compute.HostReport{Host: host, Driver: "fake", Resources: compute.Resources{VCPUs: 1, MemoryMiB: 1, DiskGiB: 1}}, store.Ratios{CPU: 1, RAM: 1, Disk: 1}); err != nil {
				c.Fatal(err)
			}
		}
		for _, path := range []string{"/os-hypervisors", "/os-hypervisors/detail"} { // pages and patterns begin with 2.33 and 2.53
			if _, reply := c.ask("admin", "GET", path+"?limit=1&marker=x&hypervisor_hostname_pattern=n9", ""); !strings.Contains(reply, `"n1"`) || !strings.Contains(reply, `"n2"`) {
				c.Errorf("%s: %s", path, reply)
			}
		}
		for query, want := range map[string]int{"": 4, "host=n1": 2, "binary=nova-compute": 2, "host=n1&binary=nova-compute": 1, "host=n": 0, "host=": 4, "x=1&limit=1": 4} {
			_, reply := c.ask("admin", "GET", "/os-services?"+query, "")
			var got struct{ Services []item }
			if err := json.Unmarshal([]byte(reply), &got); err != nil || len(got.Services) != want {
				c.Errorf("os-services?%s: %v, %s; want %d", query, err, reply, want)
			}
			for _, i := range got.Services {
				if strings.Contains(query, "host=n1") && i["host"] != "n1" || strings.Contains(query, "binary") && i["binary"] != "nova-compute" {
					c.Errorf("os-services?%s has %v", query, i)
				}
			}
		}
	})
}

// TestMarkers: the marker of a page must be a server that the client may see.
func TestMarkers(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		c.addServers()
		own, _ := c.list("member", "servers", "")
		all, _ := c.list("admin", "servers", "all_tenants=1")
		var foreign string
		for _, i := range all {
			if i.text("tenant_id") != "p1" {
				foreign = i.text("id")
			}
		}
		const unknown = "99999999-0000-4000-8000-000000000000"
		for _, sort := range []string{"", "sort_key=task_state&", "name=web&", "limit=0&"} {
			for marker, found := range map[string]bool{own[3].text("id"): true, foreign: false, unknown: false, "nope": false, own[3].text("id") + " ": false} {
				_, refused := c.list("member", "servers", sort+"marker="+url.QueryEscape(marker))
				if (refused == "") != found || !found && (!strings.HasPrefix(refused, "400") || !strings.Contains(refused, "marker ["+marker+"] not found")) {
					c.Errorf("%smarker=%s: %q", sort, marker, refused)
				}
			}
			if _, refused := c.list("admin", "servers", sort+"all_tenants=1&marker="+foreign); refused != "" {
				c.Errorf("all tenants, %smarker of any: %s", sort, refused)
			}
		}
	})
}
