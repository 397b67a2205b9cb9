package network

import "encoding/json"

// neutronError returns the type of the error in a reply of Neutron, such as OverQuota, or "" if the reply has none.
func neutronError(body []byte) string {
	var reply struct {
		Error struct {
			Type string `json:"type"`
		} `json:"NeutronError"`
	}
	if json.Unmarshal(body, &reply) != nil {
		return ""
	}
	return reply.Error.Type
}
