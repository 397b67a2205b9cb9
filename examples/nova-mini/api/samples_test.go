package api_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/store"
)

// samplesOf returns the path of a folder of Nova's published samples. It skips the test if the samples are not beside this tree.
func samplesOf(t *testing.T, folder string) string {
	t.Helper()
	dir := filepath.Join(samplesRoot, folder)
	if _, err := os.Stat(dir); err != nil {
		t.Skip("shared/nova-api is not beside this tree")
	}
	return dir
}

// readSample returns a sample, and whether it exists.
func readSample(t *testing.T, file string) (any, bool) {
	t.Helper()
	raw, err := readSampleFile(file)
	if os.IsNotExist(err) {
		return nil, false
	}
	var out any
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	knowValue(file, out)
	return out, true
}

// kindOf names the type of a JSON value. An integer is a number.
func kindOf(v any) string {
	switch v.(type) {
	case nil:
		return "null"
	case string:
		return "text"
	case float64:
		return "number"
	case bool:
		return "boolean"
	case []any:
		return "list"
	}
	return "object"
}

const isMissing = "is missing"

// differences compares the names and types of a reply with those of a sample. It returns the differences, by their place in the reply.
func differences(at string, sample, got any) map[string]string {
	out := map[string]string{}
	switch want := sample.(type) {
	case map[string]any:
		have, ok := got.(map[string]any)
		if !ok {
			break
		}
		for name, v := range want {
			if one, ok := have[name]; ok {
				maps.Copy(out, differences(at+"."+name, v, one))
			} else {
				out[at+"."+name] = isMissing
			}
		}
		for name := range have {
			if _, ok := want[name]; !ok {
				out[at+"."+name] = "is not in the sample"
			}
		}
		return out
	case []any:
		have, ok := got.([]any)
		if !ok {
			break
		}
		if len(want) > 0 && len(have) == 0 {
			out[at] = "is empty"
		}
		for _, item := range have {
			var least map[string]string // the differences from that item of the sample that is most like this one
			for _, like := range want {
				if diff := differences(at+"[]", like, item); least == nil || len(diff) < len(least) {
					least = diff
				}
			}
			maps.Copy(out, least)
		}
		return out
	}
	if kindOf(sample) != kindOf(got) {
		out[at] = fmt.Sprintf("is %s, in the sample %s", kindOf(got), kindOf(sample))
	}
	return out
}

// compareSample compares a reply with a sample, and fails the test for each difference that is not allowed. The map allowed has the reason
// of each allowed difference, by its place. compareSample adds the places of all differences to the map used. A name that the reply lacks
// has the place "-NAME". So an allowed difference of a value does not hide a field that was removed from the type.
func compareSample(t *testing.T, what string, sample any, reply string, allowed map[string]string, used map[string]bool) {
	t.Helper()
	useValue(sample)
	var got any
	if err := json.Unmarshal([]byte(reply), &got); err != nil {
		t.Fatalf("%s: %s: %v", what, reply, err)
	}
	found := differences("", sample, got)
	for _, at := range slices.Sorted(maps.Keys(found)) {
		place := strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(at, ".servers[]"), ".server."), ".")
		if found[at] == isMissing {
			place = "-" + place
		}
		if allowed[place] == "" {
			t.Errorf("%s: %s %s", what, place, found[at])
		}
		used[place] = true
	}
}

// toJSON returns a value as JSON.
func toJSON(t *testing.T, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// samplePerson returns the client that gets a reply like a sample: an administrator if the sample has the name of the host, otherwise a member.
func samplePerson(sample any) string {
	raw, err := json.Marshal(sample)
	if err == nil && strings.Contains(string(raw), `OS-EXT-SRV-ATTR:host"`) {
		return "admin"
	}
	return "member"
}

// TestSamples: in each microversion, the replies about a server have the names and types of Nova's published samples. Each difference has a written reason.
func TestSamples(t *testing.T) {
	t.Parallel()
	dir := samplesOf(t, "servers")
	allowed := map[string]string{
		"-addresses.private":                   "the sample's server has a network",
		"-security_groups":                     "the sample's server has a port; without one Nova leaves them out, too",
		"locked_reason":                        "the sample's server is locked",
		"tags":                                 "the sample's server has tags",
		"description":                          "the sample's server has a description",
		"-flavor.extra_specs.hw:numa_nodes":    "the sample's flavor has extra specs",
		"OS-EXT-SRV-ATTR:user_data":            "the sample's server has user data",
		"OS-EXT-SRV-ATTR:kernel_id":            "some samples have null, but Nova's schema of the reply of each version has a text",
		"OS-EXT-SRV-ATTR:ramdisk_id":           "as kernel_id",
		"pinned_availability_zone":             "the sample's server has a zone",
		"os-extended-volumes:volumes_attached": "the sample's server has volumes",
		"trusted_image_certificates":           "the sample's server has certificates",
		"server_groups":                        "the sample's server has a group",
		"-image.properties.architecture":       "the sample's image has properties",
		"-image.properties.auto_disk_config":   "the sample's image has properties",
		"-scheduler_hints.same_host":           "the sample's server has hints",
	}
	eachCloud(t, func(c *cloud) {
		used := map[string]bool{}
		status, reply := c.ask("member", "POST", "/servers", `{"server": {"name": "new-server-test", "flavorRef": "1", "imageRef": "70a599e0-31e7-49b7-b260-868f441e862b", "metadata": {"My Server Name": "Apache1"}}}`)
		if status != http.StatusAccepted {
			c.Fatal(reply)
		}
		var made struct{ Server struct{ ID string } }
		if err := json.Unmarshal([]byte(reply), &made); err != nil {
			c.Fatal(err)
		}
		id := made.Server.ID
		if sample, ok := readSample(c.T, filepath.Join(dir, "server-create-resp.json")); ok {
			compareSample(c.T, "create", sample, reply, map[string]string{}, used)
		}
		c.launch(id, "n1")
		compared := 0
		for n := 1; n <= 104; n++ {
			version := fmt.Sprintf("2.%d", n)
			folder := filepath.Join(dir, "v"+version)
			if n == 1 {
				folder = dir
			}
			for file, path := range map[string]string{
				"server-get-resp.json": "/servers/" + id, "servers-details-resp.json": "/servers/detail", "servers-list-resp.json": "/servers",
				"servers-details-with-changes-before.json": "/servers/detail?changes-before=2200-01-01T00:00:00Z", "servers-list-with-changes-before.json": "/servers?changes-before=2200-01-01T00:00:00Z",
				"servers-list-status-resp.json": "/servers?status=active", "../servers-sort/server-sort-keys-list-resp.json": "/servers?sort_key=display_name&sort_dir=asc",
			} {
				if version == "2.69" { // its samples show replies during an outage
					continue
				}
				sample, ok := readSample(c.T, filepath.Join(folder, file))
				if !ok {
					continue
				}
				compared++
				who := samplePerson(sample)
				if strings.HasPrefix(file, "servers") && strings.Contains(fmt.Sprint(sample), "servers_links") {
					path += map[bool]string{true: "&", false: "?"}[strings.Contains(path, "?")] + "limit=1"
				}
				status, reply := c.askAt(version, who, "GET", path, "")
				if status != http.StatusOK {
					c.Errorf("%s at %s: %d %s", path, version, status, reply)
					continue
				}
				compareSample(c.T, version+" "+file, sample, reply, allowed, used)
			}
		}
		if compared < 40 {
			c.Errorf("only %d samples were compared", compared)
		}
		for place := range allowed {
			if !used[place] {
				c.Errorf("the difference %s does not occur", place)
			}
		}
	})
	// Show that this test can fail: each kind of difference is found, also in the second item of a list.
	got := differences("", map[string]any{"a": 1., "b": "x", "c": []any{map[string]any{"d": true}}, "e": nil}, map[string]any{"b": 2., "c": []any{map[string]any{"d": false}, map[string]any{"d": "x"}}, "e": nil, "f": 1.})
	if text := fmt.Sprint(got); text != "map[.a:is missing .b:is number, in the sample text .c[].d:is text, in the sample boolean .f:is not in the sample]" {
		t.Errorf("the differences are %s", text)
	}
	reply := map[string]any{"c": []any{map[string]any{"d": false}, map[string]any{"d": "x"}, map[string]any{}}, "e": []any{}}
	if diff := fmt.Sprint(shapeDiff("", map[string]any{"c": []any{map[string]any{"d": true}}, "e": []any{1.}}, reply)); diff != "[.c[1].d is string, want bool .c[2].d is missing .e is empty]" {
		t.Errorf("the differences of shapes are %s", diff)
	}
}

// launch makes a server active on a host.
func (c *cloud) launch(id, host string) {
	c.Helper()
	if _, err := c.db.ExecContext(c.Context(), `UPDATE servers SET vm_state = ?, host = ?, launched_at = UTC_TIMESTAMP(6) WHERE id = ?`, store.Active, host, id); err != nil {
		c.Fatal(err)
	}
	if _, err := c.db.ExecContext(c.Context(), `UPDATE operations SET state = 'succeeded', active = NULL WHERE active = ?`, id); err != nil {
		c.Fatal(err)
	}
}
