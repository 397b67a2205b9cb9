package api_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/armature-go/armature/examples/nova-mini/store"
)

// TestKeyPairVersions: at each microversion that changes key pairs, requests and replies have the keys and types of Nova's samples.
func TestKeyPairVersions(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		// If a version has no sample, the sample of the version before it applies.
		for _, v := range []struct {
			version, folder, list, create string
			made, gone                    int
		}{
			{"2.1", "", "", "", 200, 202},
			{"2.2", "v2.2/", "v2.2/", "v2.2/", 201, 204},
			{"2.10", "v2.10/", "v2.10/", "v2.10/", 201, 204},
			{"2.35", "v2.10/", "v2.10/", "v2.35/", 201, 204},
		} {
			dir := "os-keypairs/"
			body := sample(c.T, dir+v.create+"keypairs-post-req.json", `"fake"`, `"u1"`)
			reply := c.want(v.made, v.version, "member", "POST", "/os-keypairs", body)
			c.sameShape(v.version+" create", sample(c.T, dir+v.create+"keypairs-post-resp.json"), reply)
			var made struct{ KeyPair struct{ Name string } }
			if err := json.Unmarshal([]byte(reply), &made); err != nil {
				c.Fatal(err)
			}
			one := "/os-keypairs/" + made.KeyPair.Name
			c.sameShape(v.version+" list", sample(c.T, dir+v.list+"keypairs-list-resp.json"), c.want(200, v.version, "member", "GET", "/os-keypairs", ""))
			c.sameShape(v.version+" show", sample(c.T, dir+v.folder+"keypairs-get-resp.json"), c.want(200, v.version, "member", "GET", one, ""))
			c.want(404, v.version, "stranger", "GET", one, "")
			c.want(v.gone, v.version, "member", "DELETE", one, "")
			imported := sample(c.T, dir+v.folder+"keypairs-import-post-req.json", `"fake"`, `"u1"`)
			c.sameShape(v.version+" import", sample(c.T, dir+v.folder+"keypairs-import-post-resp.json"), c.want(v.made, v.version, "member", "POST", "/os-keypairs", imported))
			c.want(409, v.version, "member", "POST", "/os-keypairs", imported)
			if err := json.Unmarshal([]byte(imported), &made); err != nil {
				c.Fatal(err)
			}
			c.want(v.gone, v.version, "member", "DELETE", "/os-keypairs/"+made.KeyPair.Name, "")
		}
		imported := sample(c.T, "os-keypairs/v2.92/keypairs-import-post-req.json", `"fake"`, `"u1"`)
		c.sameShape("2.92 import", sample(c.T, "os-keypairs/v2.92/keypairs-import-post-resp.json"), c.want(201, "2.92", "member", "POST", "/os-keypairs", imported))
		c.want(400, "2.92", "member", "POST", "/os-keypairs", `{"keypair": {"name": "a"}}`)
		if reply := c.want(400, "2.92", "member", "POST", "/os-keypairs", sample(c.T, "os-keypairs/v2.92/keypairs-post-req.json")); !strings.Contains(reply, "'public_key' is a required property") { // Nova's sample of a refused request
			c.Error(reply)
		}
		c.want(201, "2.91", "member", "POST", "/os-keypairs", `{"keypair": {"name": "zz"}}`)
		c.sameShape("2.35 list", sample(c.T, "os-keypairs/v2.35/keypairs-list-resp.json"), c.want(200, "2.35", "member", "GET", "/os-keypairs?limit=1", ""))
		for user, query := range map[string]string{"user1": "", "user2": "&limit=1"} { // the sample of user1 is the last page
			c.sameShape("2.35 list of "+user, sample(c.T, "os-keypairs/v2.35/keypairs-list-"+user+"-resp.json"), c.want(200, "2.35", "admin", "GET", "/os-keypairs?user_id=u1"+query, ""))
		}
	})
}

const publicKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl a@b"

// TestKeyPairRules: bad key pairs are refused with Nova's texts. Users see their own key pairs. Since 2.10, administrators see the key pairs of the
// user that they name.
func TestKeyPairRules(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		for _, tt := range []struct {
			status                     int
			version, who, method, path string
			body, says                 string
		}{
			{201, "2.10", "member", "POST", "", `{"keypair": {"name": "a", "public_key": "` + publicKey + `"}}`, `"fingerprint":"65:96:2d:fc:e8:d5:a9:11:64:0c:0f:ea:00:6e:5b:bd"`},
			{201, "2.10", "member", "POST", "", `{"keypair": {"name": "b c", "public_key": "` + publicKey + `", "type": "ssh"}}`, ""},
			{201, "2.10", "admin", "POST", "", `{"keypair": {"name": "a", "public_key": "` + publicKey + `", "user_id": "u9"}}`, `"user_id":"u9"`},
			{403, "2.10", "member", "POST", "", `{"keypair": {"name": "z", "user_id": "u9"}}`, "os_compute_api:os-keypairs:create"},
			{400, "2.9", "admin", "POST", "", `{"keypair": {"name": "z", "user_id": "u9"}}`, "user_id"},
			{400, "2.1", "member", "POST", "", `{"keypair": {"name": "z", "type": "ssh"}}`, "type"},
			{400, "2.2", "member", "POST", "", `{"keypair": {"name": "z", "type": "pgp"}}`, "type"},
			{400, "2.2", "member", "POST", "", `{"keypair": {"name": "a@b"}}`, "name"},
			{400, "2.2", "member", "POST", "", `{"keypair": {"name": " a"}}`, "name"},
			{400, "2.2", "member", "POST", "", `{"keypair": {"name": ""}}`, "name"},
			{400, "2.2", "member", "POST", "", `{"keypair": {"public_key": "` + publicKey + `"}}`, "name"},
			{400, "2.2", "member", "POST", "", `{"keypair": {"name": "z", "public_key": "ssh-rsa AAAA"}}`, "Keypair data is invalid: failed to generate fingerprint"},
			{400, "2.2", "member", "POST", "", `{"keypair": {"name": "z", "public_key": null}}`, "None is not of type 'string'"},
			{400, "2.2", "member", "POST", "", `{"keypair": {"name": "z", "public_key": ""}}`, "Keypair data is invalid: failed to generate fingerprint"},
			{400, "2.2", "member", "POST", "", `{"keypair": {"name": "z", "public_key": "` + publicKey + strings.Repeat("x", 16384) + `"}}`, "Keypair data is invalid"},
			{400, "2.2", "member", "POST", "", `{"keypair": {"name": "z", "public_key": "x", "type": "x509"}}`, "failed to generate X509 fingerprint"},
			{201, "2.92", "member", "POST", "", `{"keypair": {"name": "a@b.c", "public_key": "` + publicKey + `"}}`, ""},
			{404, "2.1", "member", "GET", "/none", "", "Keypair none not found for user u1"},
			{404, "2.1", "member", "DELETE", "/none", "", "Keypair none not found for user u1"},
			{200, "2.10", "admin", "GET", "/a?user_id=u9", "", `"user_id":"u9"`},
			{404, "2.9", "admin", "GET", "/a?user_id=u9", "", "Keypair a not found for user root"},
			{403, "2.10", "member", "GET", "/a?user_id=u9", "", "os_compute_api:os-keypairs:show"},
			{403, "2.10", "member", "DELETE", "/a?user_id=u9", "", "os_compute_api:os-keypairs:delete"},
			{403, "2.10", "member", "GET", "?user_id=u9", "", "os_compute_api:os-keypairs:index"},
			{403, "2.35", "member", "GET", "?user_id=u9", "", "os_compute_api:os-keypairs:index"},
			{200, "2.35", "member", "GET", "?limit=1", "", `marker=a"`},
			{200, "2.35", "member", "GET", "?limit=1&marker=a", "", `"a@b.c"`},
			{400, "2.35", "member", "GET", "?marker=none", "", "Marker none could not be found."},
			{200, "2.34", "member", "GET", "?limit=1&marker=none", "", `"b c"`},
			{400, "2.75", "member", "GET", "?x=1", "", "x"},
			{200, "2.74", "member", "GET", "?x=1", "", ""},
			{204, "2.10", "admin", "DELETE", "/a?user_id=u9", "", ""},
		} {
			if reply := c.want(tt.status, tt.version, tt.who, tt.method, "/os-keypairs"+tt.path, tt.body); !strings.Contains(reply, tt.says) {
				c.Errorf("%s %s %s at %s says %s, want %s", tt.method, tt.path, tt.body, tt.version, reply, tt.says)
			}
		}
		reply := c.want(201, "2.2", "member", "POST", "/os-keypairs", `{"keypair": {"name": "win", "type": "x509"}}`)
		var made struct {
			KeyPair struct {
				PublicKey   string `json:"public_key"`
				PrivateKey  string `json:"private_key"`
				Fingerprint string
			}
		}
		if err := json.Unmarshal([]byte(reply), &made); err != nil || !strings.HasPrefix(made.KeyPair.PublicKey, "-----BEGIN CERTIFICATE-----") || len(made.KeyPair.Fingerprint) != 59 {
			c.Errorf("%v: %s", err, reply)
		}
		body, err := json.Marshal(map[string]any{"keypair": map[string]string{"name": "again", "type": "x509", "public_key": made.KeyPair.PublicKey}})
		if err != nil {
			c.Fatal(err)
		}
		if reply := c.want(201, "2.2", "member", "POST", "/os-keypairs", string(body)); !strings.Contains(reply, made.KeyPair.Fingerprint) {
			c.Errorf("the imported certificate has another fingerprint: %s", reply)
		}
	})
}

// TestKeyOfServer: a server keeps the key that its user had at the creation, and the driver gets this key.
func TestKeyOfServer(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(c *cloud) {
		c.want(201, "2.10", "member", "POST", "/os-keypairs", `{"keypair": {"name": "k", "public_key": "`+publicKey+`"}}`)
		var made struct{ Server struct{ ID string } }
		if err := json.Unmarshal([]byte(c.want(202, "2.1", "member", "POST", "/servers", `{"server": {"name": "a", "flavorRef": "1", "imageRef": "x", "key_name": "k"}}`)), &made); err != nil {
			c.Fatal(err)
		}
		c.want(204, "2.10", "member", "DELETE", "/os-keypairs/k", "")
		srv, err := c.store.ServerToBuild(c.Context(), made.Server.ID)
		if err != nil {
			c.Fatal(err)
		}
		if spec := srv.Spec(); spec.PublicKey != publicKey || !spec.NeedsGuestData() {
			c.Errorf("%+v", spec)
		}
		if reply := c.want(200, "2.1", "member", "GET", "/servers/"+made.Server.ID, ""); !strings.Contains(reply, `"key_name":"k"`) {
			c.Error(reply)
		}
		c.want(400, "2.1", "stranger", "POST", "/servers", `{"server": {"name": "a", "flavorRef": "1", "imageRef": "x", "key_name": "k"}}`)
	})
}

// TestKeyPairQuota: a user has no more key pairs than the limit, even if requests run at the same time.
func TestKeyPairQuota(t *testing.T) {
	t.Parallel()
	eachCloudLimited(t, store.Limits{store.KeyPairs: 3}, func(c *cloud) {
		var wg sync.WaitGroup
		var mu sync.Mutex
		count := map[int]int{}
		for i := range 8 {
			wg.Go(func() {
				status, reply := c.askAt("2.2", "member", "POST", "/os-keypairs", fmt.Sprintf(`{"keypair": {"name": "k%d", "public_key": "%s"}}`, i, publicKey))
				if status == 403 && !strings.Contains(reply, "Quota exceeded, too many key pairs.") {
					c.Errorf("%s", reply)
				}
				mu.Lock()
				defer mu.Unlock()
				count[status]++
			})
		}
		wg.Wait()
		if count[201] != 3 || count[403] != 5 {
			c.Errorf("statuses: %v", count)
		}
		c.want(201, "2.2", "stranger", "POST", "/os-keypairs", `{"keypair": {"name": "a", "public_key": "`+publicKey+`"}}`) // another user
		var list struct {
			KeyPairs []struct{ KeyPair struct{ Name string } } `json:"keypairs"`
		}
		if err := json.Unmarshal([]byte(c.want(200, "2.2", "member", "GET", "/os-keypairs", "")), &list); err != nil || len(list.KeyPairs) != 3 {
			c.Fatalf("%v: %v", list, err)
		}
		c.want(204, "2.2", "member", "DELETE", "/os-keypairs/"+list.KeyPairs[0].KeyPair.Name, "")
		c.want(201, "2.2", "member", "POST", "/os-keypairs", `{"keypair": {"name": "free", "public_key": "`+publicKey+`"}}`)
	})
}
