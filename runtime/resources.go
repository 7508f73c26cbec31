package runtime

import (
	"fmt"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// newResources translates the specification's limits to those of the cgroup library.
func newResources(l *specs.Linux) (*cgroups.Resources, error) {
	r := &cgroups.Resources{}
	in := l.Resources
	if in == nil {
		in = &specs.LinuxResources{}
	}
	setMemory(r, in.Memory)
	setCPU(r, in.CPU)
	setBlockIO(r, in.BlockIO)
	setOthers(r, in)
	return r, setDevices(r, in.Devices, l.Devices)
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

func setMemory(r *cgroups.Resources, m *specs.LinuxMemory) {
	if m == nil {
		return
	}
	r.Memory, r.MemoryReservation, r.MemorySwap = value(m.Limit), value(m.Reservation), value(m.Swap)
	r.MemorySwappiness = m.Swappiness
	r.OomKillDisable = value(m.DisableOOMKiller)
	r.MemoryCheckBeforeUpdate = value(m.CheckBeforeUpdate)
}

func setCPU(r *cgroups.Resources, c *specs.LinuxCPU) {
	if c == nil {
		return
	}
	if c.Shares != nil {
		r.CpuShares = *c.Shares
		r.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*c.Shares)
	}
	r.CpuQuota, r.CpuPeriod, r.CpuBurst = value(c.Quota), value(c.Period), c.Burst
	r.CpuRtRuntime, r.CpuRtPeriod = value(c.RealtimeRuntime), value(c.RealtimePeriod)
	r.CpusetCpus, r.CpusetMems, r.CPUIdle = c.Cpus, c.Mems, c.Idle
}

func setBlockIO(r *cgroups.Resources, b *specs.LinuxBlockIO) {
	if b == nil {
		return
	}
	r.BlkioWeight, r.BlkioLeafWeight = value(b.Weight), value(b.LeafWeight)
	for _, d := range b.WeightDevice {
		r.BlkioWeightDevice = append(r.BlkioWeightDevice,
			cgroups.NewWeightDevice(d.Major, d.Minor, value(d.Weight), value(d.LeafWeight)))
	}
	r.BlkioThrottleReadBpsDevice = throttles(b.ThrottleReadBpsDevice)
	r.BlkioThrottleWriteBpsDevice = throttles(b.ThrottleWriteBpsDevice)
	r.BlkioThrottleReadIOPSDevice = throttles(b.ThrottleReadIOPSDevice)
	r.BlkioThrottleWriteIOPSDevice = throttles(b.ThrottleWriteIOPSDevice)
}

func throttles(in []specs.LinuxThrottleDevice) []*cgroups.ThrottleDevice {
	var out []*cgroups.ThrottleDevice
	for _, d := range in {
		out = append(out, cgroups.NewThrottleDevice(d.Major, d.Minor, d.Rate))
	}
	return out
}

func setOthers(r *cgroups.Resources, in *specs.LinuxResources) {
	if in.Pids != nil {
		r.PidsLimit = in.Pids.Limit
	}
	for _, h := range in.HugepageLimits {
		r.HugetlbLimit = append(r.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
	}
	if in.Network != nil {
		r.NetClsClassid = value(in.Network.ClassID)
		for _, p := range in.Network.Priorities {
			r.NetPrioIfpriomap = append(r.NetPrioIfpriomap, &cgroups.IfPrioMap{Interface: p.Name, Priority: int64(p.Priority)})
		}
	}
	for name, d := range in.Rdma {
		if r.Rdma == nil {
			r.Rdma = make(map[string]cgroups.LinuxRdma)
		}
		r.Rdma[name] = cgroups.LinuxRdma{HcaHandles: d.HcaHandles, HcaObjects: d.HcaObjects}
	}
	r.Unified = in.Unified
}

// setDevices gives the configured rules, in their order, and then what every container may use: its nodes are
// there by specification, and rules that forbid them would only break it. Without any rule nothing else is allowed.
func setDevices(r *cgroups.Resources, rules []specs.LinuxDeviceCgroup, nodes []specs.LinuxDevice) error {
	for _, d := range rules {
		rule, err := deviceRule(d)
		if err != nil {
			return fmt.Errorf("devices: %w", err)
		}
		r.Devices = append(r.Devices, rule)
	}
	for _, d := range nodes {
		if d.Type == "c" || d.Type == "u" || d.Type == "b" {
			r.Devices = append(r.Devices, allow(d.Type, d.Major, d.Minor, "rwm"))
		}
	}
	const any = devices.Wildcard
	r.Devices = append(r.Devices,
		allow("c", any, any, "m"), allow("b", any, any, "m"), // making a node gives no access
		allow("c", 5, 2, "rwm"),     // ptmx
		allow("c", 136, any, "rwm"), // pts
	)
	for _, d := range defaultDevices {
		r.Devices = append(r.Devices, allow(d.Type, d.Major, d.Minor, "rwm"))
	}
	return nil
}

func allow(typ string, major, minor int64, access devices.Permissions) *devices.Rule {
	t := devices.CharDevice
	if typ == "b" {
		t = devices.BlockDevice
	}
	return &devices.Rule{Type: t, Major: major, Minor: minor, Permissions: access, Allow: true}
}

func deviceRule(d specs.LinuxDeviceCgroup) (*devices.Rule, error) {
	rule := &devices.Rule{Major: devices.Wildcard, Minor: devices.Wildcard, Permissions: devices.Permissions(d.Access), Allow: d.Allow}
	switch d.Type {
	case "", "a":
		rule.Type = devices.WildcardDevice
	case "c", "u":
		rule.Type = devices.CharDevice
	case "b":
		rule.Type = devices.BlockDevice
	default:
		return nil, fmt.Errorf("type %q", d.Type)
	}
	if d.Major != nil {
		rule.Major = *d.Major
	}
	if d.Minor != nil {
		rule.Minor = *d.Minor
	}
	if rule.Permissions == "" {
		rule.Permissions = "rwm"
	}
	if !rule.Permissions.IsValid() {
		return nil, fmt.Errorf("access %q", d.Access)
	}
	return rule, nil
}
